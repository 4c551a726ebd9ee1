"""The tasks that beat sends periodically. Each may run twice, also on two machines at once."""

from collections.abc import Mapping, Sequence

from jobs.admission import approvals
from jobs.deletion import history, retention
from jobs.deletion import run as deletions
from jobs.drawings import drawings
from jobs.lifecycle import sweeps
from jobs.lifecycle.periodic import Part, run_parts
from jobs.remote import pod_reaper, pods, polls
from jobs.services import services
from jobs.subjects import image_fetches
from tasks.app import app
from tasks.relay import relay

# The parts of each periodic task. One that fails keeps no other from running.
PARTS: Mapping[str, Sequence[Part]] = {
    "imprint.sweep": (
        Part("repair", sweeps.repair_jobs),
        Part("approvals", approvals.expire),
        Part("admission", sweeps.admit_jobs),
        Part("fetches", image_fetches.repair),
        Part("drawings", drawings.repair),
        Part("deletions", deletions.sweep),
        Part("retention", retention.sweep),
        Part("history", history.trim),
        Part("relay", relay),
        Part("done", sweeps.sweep_done),
    ),
    "imprint.poll_remote": (
        Part("pods", pods.check),
        Part("final runs", polls.end_runs),
        Part("poll", polls.poll),
        Part("clear", polls.clear),
        Part("wake", polls.wake),
        Part("reap", pod_reaper.reap),
    ),
    "imprint.audit": (Part("audit", sweeps.run_audit),),
}


@app.task(name="imprint.sweep")
def sweep() -> None:
    """Send jobs, fetches and drawings without a worker again, and messages that were not sent after their commit."""
    run_parts(services(), PARTS["imprint.sweep"])


@app.task(name="imprint.poll_remote")
def poll_remote() -> None:
    """Poll all remote trainings: finished ones continue, lost ones are tried again or fail.

    Also check the rented pods, and delete those without a job.
    """
    run_parts(services(), PARTS["imprint.poll_remote"])


@app.task(name="imprint.audit")
def audit() -> None:
    """Check all rules of the ledger. A broken rule is logged as an error."""
    run_parts(services(), PARTS["imprint.audit"])
