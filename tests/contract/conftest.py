"""What the contract tests share."""

from tests.contract.jobs import job_id, no_broker, services, settings
from tests.servers.databases import address, database, postgres

__all__ = ["address", "database", "job_id", "no_broker", "postgres", "services", "settings"]
