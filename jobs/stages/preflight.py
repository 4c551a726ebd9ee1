"""What is known of a request's pictures before credits are held: pictures that do not fit its base and resolution."""

from collections.abc import Iterable, Mapping

from core.errors import ImagesUnfit
from core.picture_names import picture_label
from jobs.requests.training_request import TrainingRequest
from storage.picture_report import StoredReport
from storage.tables.jobs import JobPicture, PictureState
from training.data.framing import Frame
from training.data.verdict import judge
from training.spec import MIN_PICTURES


def leave_out(
    request: TrainingRequest, rows: Iterable[JobPicture], measured: Mapping[int, StoredReport | None]
) -> None:
    """Leave out the pictures that were measured before, perhaps for another resolution, and are no good at this one.

    What was measured of a picture decides, so it need not be decoded again. A mask has to be looked at.
    """
    frame = Frame(request.spec.resolution, request.spec.aspect_buckets)
    for row in rows:
        report = measured.get(row.position)
        if row.state != PictureState.WAITING or row.mask is not None or report is None:
            continue
        if faults := judge(report, frame, row.crop).faults:
            row.state, row.faults, row.report = PictureState.BAD, faults, report.model_copy(update={"bad": faults})


def check(request: TrainingRequest, rows: list[JobPicture], measured: Mapping[int, StoredReport | None]) -> list[str]:
    """Notes on pictures that will be left out or enlarged, one line each.

    `measured` has the reports of stored pictures by position, at whatever resolution they were checked. Pictures that
    are not fetched yet count as good. Raises ImagesUnfit if fewer pictures are left than a training needs.
    """
    spec = request.spec
    frame = Frame(spec.resolution, spec.aspect_buckets)
    faults: dict[int, str] = {}
    notes = []
    for row in rows:
        report = row.report or measured.get(row.position)
        label = picture_label(row.position, row.name)
        if report is None:
            continue
        verdict = judge(report, frame, row.crop)
        bad = verdict.faults if row.state == PictureState.WAITING else row.faults
        if bad:
            reason = report.error or "; ".join(verdict.texts) or ", ".join(bad).replace("_", " ")
            faults[row.position] = f"{label}: {reason}"
            notes.append(f"{label} will be left out: {reason}")
        notes += [f"{label}: {warning}" for warning in verdict.warnings if not bad]
    fewest = MIN_PICTURES + spec.validation.held_out
    if len(rows) - len(faults) < fewest:
        named = {f"images.{position}": fault for position, fault in faults.items()}
        raise ImagesUnfit(
            f"{len(rows) - len(faults)} of {len(rows)} pictures can be trained on at {spec.resolution} pixels; at "
            f"least {fewest} are needed ({'; '.join(faults.values())})",
            {"faults": named},
        )
    return notes
