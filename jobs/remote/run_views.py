"""A job's trainings on remote servers as operators see them."""

from sqlmodel import Session, col, select

from jobs.remote.pods import server_name
from jobs.services import Services
from jobs.view import Time, View
from storage.tables.jobs import ACTIVE, Job
from storage.tables.remote import RemoteRun, RunState


class RemoteRunView(View):
    """One attempt at training a job on a remote server. `reason`: why it ended, or what it waits for."""

    attempt: int
    server: str | None
    name: str
    state: RunState
    status: str
    step: int
    reason: str | None
    cost_dollars: float
    submitted_at: Time | None
    ended_at: Time | None
    cleared: bool  # whether nothing of it is left on the server


def list_runs(services: Services, job_id: str) -> list[RemoteRunView]:
    """For operators: a job's attempts on remote servers, in their order."""
    with services.database.reading() as session:
        return _views(session, job_id)


def _views(session: Session, job_id: str) -> list[RemoteRunView]:
    job = session.get(Job, job_id)
    waits_for = job.waiting_note if job is not None and job.status in ACTIVE else None
    query = select(RemoteRun).where(RemoteRun.job_id == job_id).order_by(col(RemoteRun.attempt))
    return [
        RemoteRunView(
            attempt=run.attempt,
            server=server_name(session, run),
            name=run.name,
            state=RunState(run.state),
            status=run.info or run.status,
            step=run.step,
            reason=run.reason or (waits_for if run.state == RunState.SUBMITTING else None),
            cost_dollars=round(run.cost_microdollars / 1e6, 4),
            submitted_at=run.submitted_at,
            ended_at=run.ended_at,
            cleared=run.cleared_at is not None,
        )
        for run in session.exec(query)
    ]
