"""The request that a job was made from, to make it again or to price that."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from core.settings import Settings
from jobs.requests import training_request
from jobs.requests.training_request import TrainingRequest
from storage.sources import Sources
from storage.tables.jobs import Job, JobPicture, Priority


def arguments_of(job: Job, pictures: Sequence[JobPicture]) -> dict[str, Any]:
    """The arguments of `train_lora` that ask for a job like this one."""
    return job.spec | {
        "owner_id": job.owner_id,
        "subject_id": job.subject_id,
        "webhook_url": job.webhook_url,
        "on_end": job.on_end.model_dump() if job.on_end else None,
        "allow_missing": job.allow_missing or None,
        "review": job.review or None,
        "model_link": job.model_link or None,
        "reference": job.reference,
        "priority": None if job.priority == Priority.NORMAL else Priority(job.priority).name.lower(),
        "images": [
            {"ref": picture.reference, "caption": picture.caption, "mask": picture.mask, "name": picture.name}
            for picture in pictures
        ],
    }


def repeat(
    job: Job, pictures: Sequence[JobPicture], key: str | None, settings: Settings, sources: Sources
) -> TrainingRequest:
    """The request to train a job again, under an idempotency key of its own. Raises as `training_request.parse`."""
    request = training_request.parse(arguments_of(job, pictures) | {"idempotency_key": key}, settings, sources)
    # The request is to train this job again: for another job, or for a new training like it, it is another one.
    return replace(request, sha256=hashlib.sha256(f"retry {job.id} {request.sha256}".encode()).hexdigest())
