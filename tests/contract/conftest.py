"""What the contract tests share."""

from tests.servers.databases import address, database, postgres

__all__ = ["address", "database", "postgres"]
