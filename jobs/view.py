"""The public view of a job: no addresses of pictures, no lease holders, no secrets."""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from core.picture_names import picture_label
from credits.ledger import Hold
from jobs.admission.expected import Expected
from jobs.admission.queues import HELD
from jobs.specs import spec_of
from storage.picture_report import is_absent
from storage.tables.jobs import ACTIVE, Job, JobPicture, PictureState, Priority, Stage, Status
from storage.tables.remote import RemoteRun
from training.spec import TrainSpec

# With an offset, as `datetime.isoformat` writes it; pydantic alone would write `Z`.
Time = Annotated[datetime, PlainSerializer(datetime.isoformat, return_type=str, when_used="json")]


class View(BaseModel):
    """What a service returns. Tasks and commands return it as JSON (`to_dict`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_dict(self) -> dict[str, Any]:
        """The view as plain JSON values."""
        return self.model_dump(mode="json")


class CreditsView(View):
    """The credits of a job. `refunded` is the part of its hold that was returned."""

    held: int
    charged: int
    refunded: int


class FailureView(View):
    """Why a job failed or was cancelled."""

    code: str
    message: str | None
    details: dict[str, Any]


class ReportView(View):
    """The measured quality of a picture, or why it cannot be used. What does not apply is absent from the JSON."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # the other fields are for the dataset step

    width: int | None = Field(None, exclude_if=is_absent)
    height: int | None = Field(None, exclude_if=is_absent)
    format: str | None = Field(None, exclude_if=is_absent)
    sharpness: float | None = Field(None, exclude_if=is_absent)
    brightness: float | None = Field(None, exclude_if=is_absent)
    faults: list[str] | None = Field(None, exclude_if=is_absent)
    notes: list[str] | None = Field(None, exclude_if=is_absent)
    repeats: int | None = Field(None, exclude_if=is_absent)  # the position of the picture that it nearly repeats
    error: str | None = Field(None, exclude_if=is_absent)
    code: str | None = Field(None, exclude_if=is_absent)


class PictureView(View):
    """The state of one picture, and its faults if it is bad. `name`: of its source, if that has one."""

    position: int
    name: str | None
    state: PictureState
    faults: list[str]
    report: ReportView | None

    @property
    def label(self) -> str:
        """The picture as every message names it."""
        return picture_label(self.position, self.name)


class FileView(View):
    """The finished LoRA file in the object store."""

    key: str
    sha256: str | None
    bytes: int | None


class TrainedOnView(View):
    """Which backend trains a job; for a remote backend also its server and what that is doing."""

    backend: str
    server: str | None
    status: str | None


class JobView(View):
    """The public view of a job. Its JSON is a contract with applications: docs/task.md."""

    job_id: str
    model_id: str
    owner_id: str
    subject_id: str
    status: Status
    stage: Stage
    attempt: int
    step: int
    total_steps: int
    loss: float | None
    validation_loss: float | None
    seconds_left: float | None
    priority: str
    awaits_approval: bool  # of an operator; until then it has no place in the order
    review: bool  # whether it waits with its captions for their owner
    review_until: Time | None  # while it does
    place: int | None  # in the order, while the job waits for its turn; 1 is the next one
    expected_start: Time | None  # of the train stage; None once that has begun, or if no worker reports
    expected_end: Time | None
    spec: TrainSpec
    credits: CreditsView
    failure: FailureView | None
    pictures: list[PictureView]
    notes: list[str]  # on pictures, captions and the trigger word, one line each
    lora: FileView | None
    trained_on: TrainedOnView
    train_seconds: float
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    reference: dict[str, Any] | None

    @property
    def id(self) -> str:
        """The job's id under the name that it has in the HTTP API."""
        return self.job_id

    @property
    def stages(self) -> list[Stage]:
        """The stages that the job goes through, in order."""
        skipped = set() if self.review else {Stage.REVIEW}
        if self.spec.captions != "auto":
            skipped.add(Stage.CAPTION)
        return [stage for stage in Stage if stage not in skipped or stage == self.stage]


def view_of(
    job: Job, pictures: Sequence[JobPicture], hold: Hold | None, run: RemoteRun | None = None,
    server: str | None = None, expected: Expected = Expected(),  # noqa: B008 - frozen
) -> JobView:  # fmt: skip
    """The public view of a job. `run` is its newest remote run, `server` the name of that run's server."""
    spec = spec_of(job)
    held = hold.amount if hold is not None and hold.state == "held" else 0
    charged = (job.charged or 0) - (hold.refunded if hold is not None else 0)
    refunded = hold.amount - charged if hold is not None and not held else 0
    return JobView(
        job_id=job.id,
        model_id=job.public_model_id,
        owner_id=job.owner_id,
        subject_id=job.subject_id,
        status=Status(job.status),
        stage=Stage(job.stage),
        attempt=job.attempt,
        step=job.step,
        total_steps=job.total_steps,
        loss=_finite(job.loss),
        validation_loss=_finite(job.validation_loss),
        seconds_left=_finite(job.seconds_left),
        priority=Priority(job.priority).name.lower(),
        awaits_approval=job.queue == HELD and job.status in ACTIVE,
        review=job.review,
        review_until=job.next_look_at if job.stage == Stage.REVIEW and job.status in ACTIVE else None,
        place=expected.place,
        expected_start=expected.start,
        expected_end=expected.end,
        spec=spec,
        credits=CreditsView(held=held, charged=charged, refunded=refunded),
        failure=_failure(job),
        pictures=[picture_view(picture) for picture in pictures],
        notes=job.notes or [],
        lora=FileView(key=job.lora_key, sha256=job.lora_sha256, bytes=job.lora_bytes) if job.lora_key else None,
        trained_on=TrainedOnView(backend=spec.backend, server=server, status=_activity(run)),
        train_seconds=round(job.train_seconds, 3),
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        reference=job.reference,
    )


def picture_view(picture: JobPicture) -> PictureView:
    """The public view of one picture."""
    return PictureView(
        position=picture.position,
        name=picture.name,
        state=PictureState(picture.state),
        faults=picture.faults,
        report=ReportView.model_validate(picture.report.model_dump()) if picture.report else None,
    )


def _finite(number: float | None) -> float | None:
    """JSON has no other numbers; a row may have one from a version that did not bound what a trainer reports."""
    return number if number is not None and math.isfinite(number) else None


def _activity(run: RemoteRun | None) -> str | None:
    return (run.info or run.status or run.state) if run else None


def _failure(job: Job) -> FailureView | None:
    if job.failure_code is None:
        return None
    return FailureView(code=job.failure_code, message=job.failure_message, details=job.details or {})
