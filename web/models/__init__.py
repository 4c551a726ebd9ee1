"""Requests and responses of the API, in camelCase, each with an example."""
