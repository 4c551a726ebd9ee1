"""What the contract tests share."""

from tests.contract.jobs import house, job_id, settings
from tests.servers.databases import address, database, postgres

__all__ = ["address", "database", "house", "job_id", "postgres", "settings"]
