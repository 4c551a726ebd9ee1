"""The tasks that beat sends periodically. Each may run twice, also on two machines at once."""

from jobs import sweeps
from jobs.remote import pod_reaper, pods, polls
from jobs.services import services
from jobs.subjects import image_fetches
from tasks.app import app
from tasks.relay import relay


@app.task(name="imprint.sweep")
def sweep() -> None:
    """Send jobs and fetches without a worker again, and messages that were not sent after their commit."""
    sweeps.repair_jobs(services())
    image_fetches.repair(services())
    relay(services())
    sweeps.sweep_done(services())


@app.task(name="imprint.poll_remote")
def poll_remote() -> None:
    """Poll all remote trainings: finished ones continue, lost ones are tried again or fail.

    Also check the rented pods, and delete those without a job.
    """
    pods.check(services())
    polls.poll(services())
    pod_reaper.reap(services())


@app.task(name="imprint.audit")
def audit() -> None:
    """Check all rules of the ledger. A broken rule is logged as an error."""
    sweeps.run_audit(services())
