"""The HTTP API in this process, on a database of its own: no server, no worker, no broker."""
