"""The newest ready LoRA of a subject, for generators."""

from typing import Any

from sqlmodel import col, select

from core.clock import utcnow
from core.errors import LoraNotReady
from jobs import keys, service
from jobs.owners.unusable_names import normal_name
from jobs.requests.envelope import subject_name
from jobs.services import Services
from jobs.specs import spec_of
from jobs.view import Time, View
from storage.tables.jobs import ACTIVE, Job, Status
from training.spec import TrainSpec

# The scale of a LoRA is in its file (`.alpha`), so every LoRA was trained for strength 1.0.
STRENGTH = 1.0
URL_S = 15 * 60  # how long addresses are valid, as for every download


class LoraView(View):
    """A ready LoRA, as a generator needs it."""

    job_id: str
    model_id: str
    subject_id: str
    base_model: str
    family: str
    trigger_word: str
    class_word: str
    strength: float
    file: str  # a name that no other LoRA has: generators cache weights by file name
    key: str
    sha256: str | None
    bytes: int | None
    url: str  # where the file can be read for `URL_S` seconds
    finished_at: Time | None

    @property
    def training_id(self) -> str:
        """The job's id under the name that it has in the HTTP API."""
        return self.job_id


def resolve(services: Services, owner_id: str, subject_id: str, base_model: str | None = None) -> LoraView:
    """The newest ready LoRA of a subject, trained on `base_model` if that is given.

    Raises LoraNotReady, which says why there is none, and SpecInvalid for a name that no owner or subject can have.
    """
    return _view(services, *_newest(services, normal_name(owner_id), subject_name(subject_id), base_model))


def of_training(services: Services, job_id: str, owner_id: str | None = None) -> LoraView:
    """The LoRA of one training. Raises NotFound as `service.get_job` does, LoraNotReady while it has none."""
    with services.database.reading() as session:
        job = service.get_job(session, job_id, owner_id)
    if job.status != Status.READY or not job.lora_key:
        raise _why_none(job, None)
    return _view(services, job, spec_of(job))


def _view(services: Services, job: Job, spec: TrainSpec) -> LoraView:
    key = str(job.lora_key)
    return LoraView(
        job_id=job.id,
        model_id=job.public_model_id,
        subject_id=job.subject_id,
        base_model=spec.base_model,
        family=spec.family,
        trigger_word=spec.trigger_word,
        class_word=spec.class_word,
        strength=STRENGTH,
        file=f"{job.id}.safetensors" if (step := keys.step_of(key)) is None else f"{job.id}-{step}.safetensors",
        key=key,
        sha256=job.lora_sha256,
        bytes=job.lora_bytes,
        url=services.store.url(key, URL_S),
        finished_at=job.finished_at,
    )


def readers_of(services: Services, job_id: str) -> dict[str, str] | None:
    """How each program reads the file of a training, as the inspector has it; None if it was not inspected."""
    with services.database.reading() as session:
        found = session.exec(select(Job.readers).where(Job.id == job_id)).one_or_none()
    return None if found is None else dict(found)


def _newest(services: Services, owner_id: str, subject_id: str, base_model: str | None) -> tuple[Job, TrainSpec]:
    query = select(Job).where(Job.owner_id == owner_id, Job.subject_id == subject_id)
    latest: Job | None = None  # of any status, for the message if none is ready
    with services.database.reading() as session:
        # The base model is in the recipe, which is not queried; a subject has a handful of jobs.
        for job in session.exec(query.order_by(col(Job.created_at).desc(), col(Job.id).desc())):
            spec = spec_of(job)
            if base_model not in (None, spec.base_model):
                continue
            if job.status == Status.READY and job.lora_key:
                return job, spec
            latest = latest or job
        raise _why_none(latest, base_model)


def _why_none(latest: Job | None, base_model: str | None) -> LoraNotReady:
    on = " on this base model" if base_model else ""
    if latest is None:
        return LoraNotReady(f"this subject was never trained{on}", {"status": None})
    details: dict[str, Any] = {"status": str(latest.status), "job_id": latest.id}
    if latest.status in ACTIVE:
        minutes = (utcnow() - latest.created_at).total_seconds() / 60
        where = f"{latest.status} for {minutes:.0f} min, at step {latest.step} of {latest.total_steps}"
        text = f"no LoRA is ready yet{on}: {latest.id} has been {where}"
        return LoraNotReady(text, details | {"stage": str(latest.stage)})
    why = f" ({latest.failure_code})" if latest.failure_code and latest.status == Status.FAILED else ""
    return LoraNotReady(
        f"no LoRA is ready{on}: the latest training, {latest.id}, {_ended(latest)}{why}",
        details | {"code": latest.failure_code},
    )


def _ended(job: Job) -> str:
    return "was cancelled" if job.status == Status.CANCELLED else f"has {job.status}"
