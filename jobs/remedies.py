"""What an owner can change after a failed training so that the next one can succeed."""

from dataclasses import dataclass

from sqlmodel import col, select

from core.errors import FailureCode
from jobs.services import Services
from jobs.view import JobView
from storage.picture_report import StoredReport
from storage.tables.jobs import JobPicture, Status
from training.data.framing import Frame
from training.data.verdict import judge
from training.spec import MIN_PICTURES

# The same request would fail again: something in it must change first.
_FAILS_AGAIN = frozenset({
    FailureCode.TOO_FEW_IMAGES, FailureCode.IMAGE_INVALID, FailureCode.SPEC_INVALID, FailureCode.OUT_OF_MEMORY,
    FailureCode.BASE_MODEL_UNAVAILABLE, FailureCode.LOSS_NOT_FINITE, FailureCode.TIMEOUT,
})  # fmt: skip


@dataclass(frozen=True)
class Remedy:
    """What to change.

    Without any of these, the owner must choose: other pictures, or another base model.
    """

    resolution: int | None = None
    max_steps: int | None = None
    own_recipe: bool = False  # of the base model, instead of the request's


def remedy_of(services: Services, view: JobView) -> Remedy | None:
    """What to change before a failed training is started again; None: the same request may succeed."""
    if view.status != Status.FAILED or view.failure is None or view.failure.code not in _FAILS_AGAIN:
        return None
    match view.failure.code:
        case FailureCode.TOO_FEW_IMAGES:
            return Remedy(resolution=_fitting_resolution(services, view))
        case FailureCode.OUT_OF_MEMORY:
            return Remedy(resolution=max(64, view.spec.resolution * 3 // 4 // 64 * 64))
        case FailureCode.TIMEOUT:
            return Remedy(max_steps=max(1, view.total_steps // 2))
        case FailureCode.LOSS_NOT_FINITE:
            return Remedy(own_recipe=True)
    return Remedy()


def _fitting_resolution(services: Services, view: JobView) -> int | None:
    """The largest resolution below the job's at which enough of its pictures are good."""
    with services.database.reading() as session:
        rows = session.exec(select(JobPicture).where(col(JobPicture.job_id) == view.job_id)).all()
    # A picture that is left out for anything but its size is left out at every resolution.
    usable = [(row.report or StoredReport(), row.crop) for row in rows if not set(row.faults) - {"too_small"}]
    needed = MIN_PICTURES + view.spec.validation.held_out
    for resolution in range(view.spec.resolution - 64, 63, -64):
        frame = Frame(resolution, view.spec.aspect_buckets)
        if sum(not judge(report, frame, crop).faults for report, crop in usable) >= needed:
            return resolution
    return None
