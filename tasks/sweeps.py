"""What beat runs: repair what was left lying. Each may run twice, or on two machines at once."""

from jobs import sweeps
from jobs.remote import pod_reaper, pods, polls
from jobs.services import services
from tasks.app import app
from tasks.relay import relay


@app.task(name="imprint.sweep")
def sweep() -> None:
    """Put jobs that nobody works on back on their way, and send messages that were not sent after their commit."""
    sweeps.repair_jobs(services())
    relay(services())


@app.task(name="imprint.poll_remote")
def poll_remote() -> None:
    """Look at all trainings on remote servers; what is done goes on, what is lost is tried again or fails.

    And after the rented machines: none that serves nobody is kept.
    """
    pods.check(services())
    polls.poll(services())
    pod_reaper.reap(services())


@app.task(name="imprint.audit")
def audit() -> None:
    """Check every rule of the ledger; what is off is logged as an error."""
    sweeps.audit_books(services())
