"""A site that trains on rented pods or on a fixed server, with the patience of a test."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from jobs.remote.run_views import list_runs
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


def done_twice(journal: Iterable[dict[str, Any]]) -> list[str]:
    """What a server did more than once for one name: a job made, a job queued. Of a `lost` answer the deed was done.

    What was made on a pod that is gone since is made again on another.
    """
    done = Counter(
        f"{'made' if line['path'] == '/api/jobs' else 'queued'} {line['about']} on {line['pid']}"
        for line in journal
        if ((line["method"] == "POST" and line["path"] == "/api/jobs") or line["path"].endswith("/start"))
        and "/queue/" not in line["path"]
        and (line["status"] == 200 or line["fault"] == "lost")
    )
    return sorted(what for what, times in done.items() if times > 1)


def remote_runs(site: Site, job_id: str) -> list[dict[str, Any]]:
    return [run.to_dict() for run in list_runs(site.services, job_id)]


def is_cleared(site: Site, job_ids: Iterable[str]) -> bool:
    """Whether nothing of these jobs is left on any server, as far as we know."""
    return all(run["state"] == "ended" and run["cleared"] for job_id in job_ids for run in remote_runs(site, job_id))
