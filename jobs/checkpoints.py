"""The LoRA files of a job's checkpoints, for requests with `keep_checkpoints`."""

from pathlib import Path

from sqlmodel import col, select

from core.errors import NotFound
from jobs import service
from jobs.services import Services
from jobs.view import FileView, View
from storage.tables.jobs import JobEvent, Status


class CheckpointView(View):
    """The LoRA as it was after `step` steps."""

    step: int
    key: str
    sha256: str
    bytes: int
    validation_loss: float | None = None  # on held-out pictures, if they were validated at this step


def kept(services: Services, job_id: str, owner_id: str | None = None) -> list[CheckpointView]:
    """The kept checkpoints by step; none of a failed job. Raises NotFound as `service.get_job` does."""
    with services.database.reading() as session:
        job = service.get_job(session, job_id, owner_id)
        query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.kind == "checkpoint")
        events = session.exec(query.order_by(col(JobEvent.id))).all()
    if job.status == Status.FAILED or job.thinned_at is not None:
        return []
    # A job that continued after a crash may have written a file again.
    newest = {event.data["step"]: CheckpointView.model_validate(event.data) for event in events}
    return [newest[step] for step in sorted(newest)]


def get(services: Services, job_id: str, step: int, owner_id: str | None = None) -> CheckpointView:
    """One kept checkpoint. Raises NotFound, also as `service.get_job` does."""
    for checkpoint in kept(services, job_id, owner_id):
        if checkpoint.step == step:
            return checkpoint
    raise NotFound(f"job {job_id} has no kept checkpoint of step {step}")


def download(services: Services, job_id: str, step: int, path: Path, owner_id: str | None = None) -> FileView:
    """Copy the LoRA file of a kept checkpoint to `path`. Raises as `get` does."""
    checkpoint = get(services, job_id, step, owner_id)
    services.store.get_file(checkpoint.key, path)
    return FileView(key=checkpoint.key, sha256=checkpoint.sha256, bytes=checkpoint.bytes)
