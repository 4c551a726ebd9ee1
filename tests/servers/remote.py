"""A site that trains on rented pods or on a fixed server, with the patience of a test."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from jobs import service
from tests.site import Site

# No training worker anywhere: what is trained here is trained elsewhere.
START = ("io", "beat")

ENVIRONMENT = {
    "IMPRINT_BASE_MODELS": "{}",
    "IMPRINT_BACKENDS": '{"sd15": "ai-toolkit"}',
    "IMPRINT_REMOTE_POLL_S": "1",
    "IMPRINT_REMOTE_STALL_S": "8",
    "IMPRINT_POD_WARM_S": "1",
    "IMPRINT_POD_READY_S": "60",
    "IMPRINT_SPEND_PER_HOUR": "100",
    "IMPRINT_SPEND_PER_DAY": "1000",
}


def made_twice(journal: Iterable[dict[str, Any]]) -> list[str]:
    """Names of jobs that a server made more than once, or that were queued more often than once."""
    journal = list(journal)
    made = Counter(
        line["about"]
        for line in journal
        if (line["method"], line["path"], line["status"]) == ("POST", "/api/jobs", 200) and _was_done(line)
    )
    return sorted(name for name, times in made.items() if times > 1)


def _was_done(line: dict[str, Any]) -> bool:
    """Whether the server did what was asked; the fault `lost` comes after the deed."""
    return line["fault"] in (None, "lost", "truncate")


def remote_runs(site: Site, job_id: str) -> list[dict[str, Any]]:
    return service.remote_runs(site.house, job_id)


def is_cleared(site: Site, job_ids: Iterable[str]) -> bool:
    """Whether nothing of these jobs is left on any server, as far as we know."""
    return all(run["state"] == "ended" and run["cleared"] for job_id in job_ids for run in remote_runs(site, job_id))
