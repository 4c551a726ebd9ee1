"""A training's LoRA as a file to download: its name, and the forms that programs read."""

import re
import threading
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from core.errors import IllegalMove, SpecInvalid, TooManyRequests
from jobs import checkpoints, service
from jobs.services import Services
from jobs.specs import spec_of
from storage.tables.jobs import Job, Status
from training.families.registry import BASE_MODELS, FAMILIES
from training.lora import file as lora_file
from training.lora import formats
from training.lora.reading import read_lora
from training.spec import TrainSpec

_PROGRAMS = {"kohya": ("ComfyUI", "AUTOMATIC1111", "Forge"), "comfyui": ("ComfyUI",), "peft": ("diffusers",)}
# Of families whose own form is peft's: programs read the other forms too, but only some trainers need them.
_OF_PEFT = {
    "peft": ("ComfyUI", "diffusers"),
    "kohya": ("ComfyUI", "musubi-tuner"),
    "comfyui": ("ComfyUI", "ai-toolkit"),
}
_SUFFIXES = {"kohya": "kohya", "comfyui": "comfyui", "peft": "diffusers"}
_MAX_STEM = 40
_CONVERTING = threading.Lock()  # a conversion takes several times the memory of its file
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class FormChoice:
    """A form of a LoRA file, and the programs that it is for. `is_own`: the training has written this form."""

    name: str
    programs: tuple[str, ...]
    is_own: bool


@dataclass(frozen=True)
class Download:
    """A LoRA file of a training: under `key` in the object store, in the form that the training has written.

    `form` is the form that is asked for; None if that is the training's own. `name` is what to save the file as.
    """

    key: str
    sha256: str
    bytes: int
    name: str
    form: str | None


def forms(family: str) -> list[FormChoice]:
    """The forms that the LoRA files of a family can have, the one that trainings write first."""
    lora = FAMILIES[family].lora
    # For a UNet, ComfyUI's form is kohya's.
    possible = [
        form for form in formats.FORMATS if form not in lora.refused and (form, lora.form) != ("comfyui", "kohya")
    ]
    programs = _OF_PEFT if lora.form == "peft" else _PROGRAMS
    made = [FormChoice(form, programs[form], form == lora.form) for form in possible]
    return sorted(made, key=lambda form: not form.is_own)


def find(
    services: Services, job_id: str, owner_id: str | None = None, *, step: int | None = None, form: str | None = None
) -> Download:
    """The delivered LoRA of a ready training, or with `step` that of a kept checkpoint.

    Raises NotFound as `service.get_job` does, also for a checkpoint that was not kept; IllegalMove for a training
    without a file, and SpecInvalid for a form that the family does not have.
    """
    with services.database.reading() as session:
        job = service.get_job(session, job_id, owner_id)
        spec = spec_of(job)
        own = FAMILIES[spec.family].lora.form
        if form is not None and (reason := _refusal(spec.family, form)) is not None:
            raise SpecInvalid.of({"form": reason})
        stem = name_of(session, job, spec)
    if step is not None:
        kept = checkpoints.get(services, job_id, step, owner_id)
        key, sha256, size, stem = kept.key, kept.sha256, kept.bytes, f"{stem}-step{step}"
    elif job.status != Status.READY or job.lora_key is None:
        raise IllegalMove(f"job {job_id} is {job.status} and has no LoRA file")
    else:
        key, sha256, size = job.lora_key, job.lora_sha256 or "", job.lora_bytes or 0
    other = form if form not in (None, own) else None
    suffix = f"-{_SUFFIXES[other]}" if other else ""
    return Download(key, sha256, size, f"{stem}{suffix}.safetensors", other)


def _refusal(family: str, form: str) -> str | None:
    if form not in formats.FORMATS:
        return f"must be one of {', '.join(formats.FORMATS)}"
    return FAMILIES[family].lora.refused.get(form)


def write(services: Services, download: Download, path: Path) -> None:
    """Write the file of `download` to `path`, in the form that was asked for.

    Raises LoraInvalid if that form cannot express the LoRA, TooManyRequests while others are converted.
    """
    services.store.get_file(download.key, path)
    if download.form is None:
        return
    if not _CONVERTING.acquire(timeout=_PATIENCE_S):
        raise TooManyRequests("other LoRA files are being converted; try again in a minute")
    try:
        lora_file.write_file(path, formats.serialize_as(read_lora(path), download.form))
    finally:
        _CONVERTING.release()


# ---- names --------------------------------------------------------------------------------------------------------


def name_of(session: Session, job: Job, spec: TrainSpec) -> str:
    """The name of a training's file without its ending: subject, trigger word, base model and version.

    `rex-sdxl-v3`, or `rex-sks-sdxl-v3` where the trigger word says more than the subject. Versions count the ready
    trainings of the subject, in the order in which they ended.
    """
    subject, word = slug(job.subject_id), slug(spec.trigger_word)
    parts = [word] if subject in word else [subject] if word in subject else [subject, word]
    base = slug(spec.base_model) if spec.base_model in BASE_MODELS else spec.family
    return "-".join(filter(None, [*parts, base, f"v{_version(session, job)}"]))


def _version(session: Session, job: Job) -> int:
    ended = job.finished_at
    query = select(func.count()).select_from(Job).where(
        Job.owner_id == job.owner_id, Job.subject_id == job.subject_id, Job.status == Status.READY
    )  # fmt: skip
    if ended is None or job.status != Status.READY:
        return session.exec(query).one() + 1  # of a checkpoint of a training that is not ready
    as_early = sa.and_(col(Job.finished_at) == ended, col(Job.id) <= job.id)
    return session.exec(query.where(sa.or_(col(Job.finished_at) < ended, as_early))).one()


def slug(name: str) -> str:
    """A name in letters, digits and hyphens that every file system takes. Empty for a name without any of ours."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:_MAX_STEM].strip("-")
