"""Which LoRA of a ready training is delivered: that of its last step, or of a kept checkpoint that its owner chose."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlmodel import Session, col, select

from core.errors import IllegalMove
from jobs import checkpoints, service
from jobs.lifecycle import launches
from jobs.owners import audit_log
from jobs.services import Services
from jobs.view import JobView
from storage.tables.jobs import Job, JobEvent, Status


@dataclass(frozen=True)
class CheckpointChoice:
    """A LoRA that can be chosen. `is_best`: it has the lowest loss on held-out pictures of all that were validated."""

    step: int
    bytes: int
    loss: float | None  # of the training, reported last before this step
    validation_loss: float | None
    is_best: bool
    is_delivered: bool


def choices(services: Services, job_id: str, owner_id: str | None = None) -> list[CheckpointChoice]:
    """The LoRAs of a training that can be downloaded and delivered, by step; none if no checkpoints were kept.

    Raises NotFound as `service.get_job` does.
    """
    kept = checkpoints.kept(services, job_id, owner_id)
    view = service.get(services, job_id, owner_id)
    if not kept:
        return []
    losses = _losses(service.events(services, job_id, owner_id=owner_id))
    files = [(one.step, one.bytes, one.validation_loss, one.key) for one in kept]
    if view.lora is not None and view.lora.key not in {one.key for one in kept}:
        files.append((view.step, view.lora.bytes or 0, view.validation_loss, view.lora.key))
    validated = [loss for _, _, loss, _ in files if loss is not None]
    best = min(validated) if len(validated) > 1 else None
    return [
        CheckpointChoice(
            step, size, _before(losses, step), validation, best is not None and validation == best,
            view.status == Status.READY and view.lora is not None and key == view.lora.key,
        )
        for step, size, validation, key in files
    ]  # fmt: skip


def _losses(events: Sequence[JobEvent]) -> list[tuple[int, float]]:
    found = {event.data["step"]: event.data.get("loss") for event in events if event.kind == "progress"}
    return sorted((step, loss) for step, loss in found.items() if loss is not None)


def _before(losses: Sequence[tuple[int, float]], step: int) -> float | None:
    return next((loss for at, loss in reversed(losses) if at <= step), None)


def deliver(services: Services, job_id: str, step: int, owner_id: str | None = None) -> JobView:
    """Deliver the LoRA of a kept checkpoint from now on. The one delivered before stays among the checkpoints.

    Raises NotFound as `checkpoints.get` does, IllegalMove for a training that is not ready.
    """
    chosen = checkpoints.get(services, job_id, step, owner_id)
    with services.database.writing() as session:
        service.get_job(session, job_id, owner_id)
        job = session.exec(select(Job).where(col(Job.id) == job_id).with_for_update()).one()
        if job.status != Status.READY or job.lora_key is None:
            raise IllegalMove(f"job {job_id} is {job.status}; a checkpoint is chosen once the training is ready")
        if job.lora_key != chosen.key:
            _keep_last(session, job)
            job.lora_key, job.lora_sha256, job.lora_bytes = chosen.key, chosen.sha256, chosen.bytes
            session.add(job)
            audit_log.record(session, "checkpoint.delivered", job_id=job_id, owner_id=job.owner_id, step=step)
    return service.get(services, job_id)


def _keep_last(session: Session, job: Job) -> None:
    """List the LoRA of the last step among the checkpoints, so that it can be delivered again."""
    query = select(JobEvent).where(JobEvent.job_id == job.id, JobEvent.kind == "checkpoint")
    if any(event.data["key"] == job.lora_key for event in session.exec(query)):
        return
    facts = {"step": job.step, "key": job.lora_key, "sha256": job.lora_sha256, "bytes": job.lora_bytes or 0}
    launches.record_event(session, job.id, "checkpoint", **facts, validation_loss=job.validation_loss)
