"""A job as the outside sees it: no addresses of pictures, no holders of leases, nothing secret."""

import json
from collections.abc import Sequence
from typing import Any

from credits.ledger import Hold
from jobs.specs import spec_of
from storage.tables import Job, JobPicture, PictureState, RemoteRun

View = dict[str, Any]
_INNER = ("bad", "dhash")  # of a picture's report: what only the dataset step reads


def view_of(
    job: Job, pictures: Sequence[JobPicture], hold: Hold | None, run: RemoteRun | None = None, server: str | None = None
) -> View:
    """The public view, JSON-serialisable. `run` is the newest of a remote training, `server` the name of its server."""
    spec = spec_of(job)
    held = hold.amount if hold is not None and hold.state == "held" else 0
    charged = (job.charged or 0) - (hold.refunded if hold is not None else 0)
    return {
        "job_id": job.id,
        "model_id": job.id,
        "owner_id": job.owner_id,
        "subject_id": job.subject_id,
        "status": job.status,
        "stage": job.stage,
        "attempt": job.attempt,
        "step": job.step,
        "total_steps": job.total_steps,
        "loss": job.loss,
        "validation_loss": job.validation_loss,
        "seconds_left": job.seconds_left,
        "spec": spec.model_dump(),
        "credits": {
            "held": held,
            "charged": charged,
            "refunded": hold.amount - charged if hold is not None and not held else 0,
        },
        "failure": _failure(job),
        "pictures": [picture_view(picture) for picture in pictures],
        "lora": {"key": job.lora_key, "sha256": job.lora_sha256, "bytes": job.lora_bytes} if job.lora_key else None,
        "trained_on": {"backend": spec.backend, "server": server, "status": _doing(run)},
        "train_seconds": round(job.train_seconds, 3),
        "created_at": job.created_at.isoformat(),
        "started_at": job.started_at.isoformat() if job.started_at else None,
        "finished_at": job.finished_at.isoformat() if job.finished_at else None,
    }


def picture_view(picture: JobPicture) -> dict[str, Any]:
    """One picture's verdict: good, bad (and why), or waiting."""
    report = json.loads(picture.report) if picture.report else None
    return {
        "position": picture.position,
        "state": PictureState(picture.state),
        "faults": json.loads(picture.faults),
        "report": {name: told for name, told in report.items() if name not in _INNER} if report else None,
    }


def _doing(run: RemoteRun | None) -> str | None:
    return (run.info or run.status or run.state) if run else None


def _failure(job: Job) -> dict[str, Any] | None:
    if job.failure_code is None:
        return None
    details = json.loads(job.details) if job.details else {}
    return {"code": job.failure_code, "message": job.failure_message, "details": details}
