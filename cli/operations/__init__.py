"""Commands for operators: owners, credits, limits, access, pauses, and the installation itself."""
