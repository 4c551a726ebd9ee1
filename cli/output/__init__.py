"""How commands print: tables, progress, JSON, and errors with their exit codes."""
