"""What every package may use: settings, errors, ids, logging, and the guard for requests to foreign addresses."""
