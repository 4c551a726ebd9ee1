"""The HTTP API and, beside it, the page: FastAPI around `jobs`."""
