"""The source of one picture: fetched, decoded and prepared for a recipe."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, fields

from sqlmodel import Session, col, select

from core.errors import ImageInvalid, ImageRefused, ImageUnreachable, MaskInvalid, NotFound, StoreUnavailable
from core.outbound.download_budget import Requester
from core.picture_names import picture_label
from jobs import keys
from jobs.lifecycle import retries
from jobs.services import Services
from jobs.specs import spec_of
from jobs.stages.intake import preparation
from storage.picture_report import StoredReport
from storage.tables.jobs import Job, JobPicture
from storage.tables.pictures import PreparedPicture, StoredPicture
from training.data.pictures import BAD_FAULTS, PictureReport
from training.spec import TrainSpec


def prepared_before(session: Session, source_sha256: str | None, recipe: str) -> PreparedPicture | None:
    """The result of an earlier preparation of a file."""
    return session.get(PreparedPicture, (source_sha256, recipe)) if source_sha256 else None


def fetch_and_convert(
    services: Services, job: Job, picture: JobPicture, left: int, *, again: bool = False
) -> tuple[PreparedPicture, int]:
    """Fetch the source and its mask, at most `left` bytes, and convert it, unless that was done before.

    `again` converts it anyway.

    Returns the picture and the number of bytes fetched. A picture that is left out because it cannot be fetched has no
    source hash. Raises ImageUnreachable, which may be retried.
    """
    spec, requester = spec_of(job), Requester(job.owner_id, job.id)
    files: list[bytes] = []
    try:
        for reference in filter(None, (picture.reference, picture.mask)):
            files.append(_source(services, reference, left - sum(map(len, files)), requester))
    except ImageUnreachable as error:
        fault, reason = ("unusable_mask", f"its mask: {error.message}") if files else ("unreachable", error.message)
        is_over = retries.is_patience_over(picture, services.settings)
        if error.retryable and not (job.allow_missing and is_over):
            tried = f"; tried for {services.settings.fetch_patience_s:.0f} s" if is_over else ""
            label = picture_label(picture.position, picture.name)
            details = {"picture": picture.position + 1}
            raise ImageUnreachable(f"{label}: {reason}{tried}", details, retry_after_s=error.retry_after_s) from error
        report = StoredReport(error=reason, code=error.code, bad=[fault])
        return PreparedPicture(source_sha256="", recipe="", report=report), sum(map(len, files))
    data, mask = files[0], files[1] if picture.mask else None
    sha256, of_mask = hashlib.sha256(data).hexdigest(), hashlib.sha256(mask).hexdigest() if mask is not None else None
    with services.database.reading() as session:
        done = None if again else prepared_before(session, sha256, preparation(spec, of_mask, picture.crop))
    made = done or convert(services, data, sha256, spec, requester.owner_id, mask, picture.crop)
    return made, sum(map(len, files))


def _source(services: Services, reference: str, left: int, requester: Requester) -> bytes:
    """The bytes of a file: from the store if it is stored there, else fetched, at most `left` bytes."""
    if "://" in reference:
        if left <= 0:
            raise ImageRefused(
                "the pictures of this job are larger in total than a job may have (IMPRINT_MAX_JOB_BYTES)"
            )
        most = min(left, services.settings.max_picture_bytes)
        return services.sources.fetch(reference, max_bytes=most, requester=requester)
    with services.database.reading() as session:
        stored = session.get_one(StoredPicture, reference)
    try:
        return services.store.get(stored.key)
    except NotFound as error:
        raise ImageRefused(f"the stored picture {stored.id} is no longer in the object store") from error
    except StoreUnavailable as error:
        raise ImageUnreachable(error.message) from error


def convert(
    services: Services, data: bytes, sha256: str, spec: TrainSpec, owner_id: str, mask: bytes | None = None,
    crop: Sequence[float] | None = None,
) -> PreparedPicture:  # fmt: skip
    """Decode and prepare a file of an owner for `spec`, and put the result into the store. The caller stores the row.

    If the file or its mask cannot be read, the row's report says why.
    """
    with services.database.reading() as session:
        known = _measured(session, sha256)
    recipe = preparation(spec, hashlib.sha256(mask).hexdigest() if mask is not None else None, crop)
    try:
        made = services.decoder.prepare(
            data,
            resolution=spec.resolution,
            aspect_buckets=spec.aspect_buckets,
            masked=spec.objective.masked,
            mask=mask,
            crop=crop,
            known=known,
            owner_id=owner_id,
        )
    except ImageInvalid as error:
        fault = "unusable_mask" if isinstance(error, MaskInvalid) else "unreadable"
        report = StoredReport(error=error.message, code=error.code, bad=[fault])
        return PreparedPicture(source_sha256=sha256, recipe=recipe, report=report)
    key = keys.prepared(made.sha256)
    services.store.put(key, made.png)
    return PreparedPicture(
        source_sha256=sha256,
        recipe=recipe,
        key=key,
        sha256=made.sha256,
        width=made.width,
        height=made.height,
        report=StoredReport(**asdict(made.report), bad=[fault for fault in made.report.faults if fault in BAD_FAULTS]),
    )


def _measured(session: Session, sha256: str) -> PictureReport | None:
    """What was measured of a file when it was prepared for another recipe."""
    rows = select(PreparedPicture).where(
        PreparedPicture.source_sha256 == sha256, col(PreparedPicture.sha256).is_not(None)
    )
    found = session.exec(rows.limit(1)).first()
    return PictureReport(**found.report.model_dump(include=_MEASURED)) if found else None


_MEASURED = {field.name for field in fields(PictureReport)}
