"""The pictures of a job: stored sources, and results of earlier preparation."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlmodel import Session, col, select

from core.errors import SpecInvalid
from core.ids import new_id
from core.picture_names import plain_name, source_name
from jobs import keys, shared_objects
from jobs.deletion import guard
from jobs.owners import limits
from jobs.requests.envelope import label_of
from jobs.requests.training_request import TrainingRequest
from jobs.services import Services
from jobs.stages import preflight
from storage.database import lock_name
from storage.tables.jobs import JobPicture, PictureState
from storage.tables.pictures import PreparedPicture, StoredPicture
from training.data.dataset import Manifest
from training.ports import Example
from training.spec import TrainSpec


def store_picture(
    services: Services, owner_id: str, subject_id: str, data: bytes, *, is_mask: bool = False, name: str | None = None
) -> str:
    """Store a picture of a subject, or a mask; returns the id that `images` may name. `name`: of its file, for people.

    The same bytes have the same id; masks only under the same name, by which they belong to a picture. A picture that
    was removed is restored by this.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    key = keys.original(sha256)
    shared_objects.make_sure(services, key, data)
    query = select(StoredPicture).where(
        StoredPicture.owner_id == owner_id,
        StoredPicture.subject_id == subject_id,
        StoredPicture.sha256 == sha256,
        StoredPicture.is_mask == is_mask,
    )
    if is_mask:
        query = query.where(col(StoredPicture.name) == plain_name(name) if name else col(StoredPicture.name).is_(None))

    def record(session: Session) -> str:
        guard.lock_owner(session, owner_id)
        guard.refuse_if_deleting(session, owner_id, subject_id)
        # Of two requests that store the same bytes at once, the second waits here and finds the picture of the first:
        # with two ids, the same request would not be the same to its idempotency key.
        lock_name(session, f"picture {owner_id} {subject_id} {sha256}")
        picture = session.exec(query.order_by(col(StoredPicture.id)).with_for_update()).first()
        if picture is None or picture.removed_at is not None:
            limits.check_picture(session, services.settings, owner_id, len(data))
        picture = picture or StoredPicture(
            id=new_id("pic"),
            owner_id=owner_id,
            subject_id=subject_id,
            sha256=sha256,
            key=key,
            size_bytes=len(data),
            name=plain_name(name),
            is_mask=is_mask,
        )
        picture.removed_at = None
        session.add(picture)
        shared_objects.record_use(session, key)
        return picture.id

    picture_id = shared_objects.with_patience(lambda: _in_transaction(services, record))
    shared_objects.make_sure(services, key, data)
    return picture_id


def _in_transaction(services: Services, work: Callable[[Session], str]) -> str:
    with services.database.writing() as session:
        return work(session)


def rows_for(session: Session, job_id: str, request: TrainingRequest) -> tuple[list[JobPicture], list[str]]:
    """The rows for a job's pictures, and notes on pictures that do not fit the recipe.

    A stored picture that was prepared for this recipe before is done already. Raises ImagesUnfit if too few pictures
    fit, and SpecInvalid for ids that the owner does not have.
    """
    images = request.envelope.images
    stored = _stored(session, request)
    if missing := {
        name: f"{label_of(index, image)}: the owner has no stored picture with this id"
        for index, image in enumerate(images)
        for name, reference in ((f"images.{index}", image.ref), (f"images.{index}.mask", image.mask))
        if reference and "://" not in reference and reference not in stored
    }:
        raise SpecInvalid.of(missing)
    rows = []
    for position, image in enumerate(images):
        row = JobPicture(job_id=job_id, position=position, reference=image.ref, caption=image.caption, mask=image.mask)
        row.name = plain_name(image.name) or source_name(image.ref)
        if image.ref in stored:
            row.name = row.name or stored[image.ref].name
            row.caption = image.caption or stored[image.ref].caption
            row.source_sha256 = stored[image.ref].sha256
            row.crop = stored[image.ref].crop
        rows.append(row)
    # The result for a picture with a mask depends on both files: it is known if both are stored.
    recipes = {
        row.position: preparation(request.spec, stored[row.mask].sha256 if row.mask else None, row.crop)
        for row in rows
        if row.source_sha256 and (row.mask is None or row.mask in stored)
    }
    prepared = _prepared(session, {picture.sha256 for picture in stored.values()}, recipes.values())
    measured = {row.position: stored[row.reference].report for row in rows if row.reference in stored}
    for row in rows:
        if done := prepared.get((row.source_sha256, recipes.get(row.position))):
            for name, value in picture_values(done).items():
                setattr(row, name, value)
    preflight.leave_out(request, rows, measured)
    return rows, preflight.check(request, rows, measured)


def _stored(session: Session, request: TrainingRequest) -> dict[str, StoredPicture]:
    """The stored pictures that a request names, by id."""
    named = {reference for image in request.envelope.images for reference in (image.ref, image.mask) if reference}
    query = select(StoredPicture).where(
        col(StoredPicture.id).in_({reference for reference in named if "://" not in reference}),
        StoredPicture.owner_id == request.envelope.owner_id,
        col(StoredPicture.removed_at).is_(None),
    )
    # A deletion of one of them waits until this job is there, and so sees that it uses the picture.
    return {picture.id: picture for picture in session.exec(query.with_for_update(read=True, key_share=True))}


def _prepared(
    session: Session, hashes: Iterable[str], recipes: Iterable[str]
) -> dict[tuple[str | None, str | None], PreparedPicture]:
    query = select(PreparedPicture).where(
        col(PreparedPicture.source_sha256).in_(set(hashes)), col(PreparedPicture.recipe).in_(set(recipes))
    )
    return {(row.source_sha256, row.recipe): row for row in session.exec(query)}


def preparation(spec: TrainSpec, mask_sha256: str | None = None, crop: Sequence[float] | None = None) -> str:
    """The name of the preparation for this spec, mask and crop. A file is prepared once for each name."""
    buckets = "-buckets" if spec.aspect_buckets else ""
    masked = "-masked" if spec.objective.masked else ""
    cropped = "-crop" + ",".join(f"{share:.4f}" for share in crop) if crop else ""
    return f"{spec.resolution}{buckets}{masked}{f'-{mask_sha256}' if mask_sha256 else ''}{cropped}"


def picture_values(done: PreparedPicture) -> dict[str, Any]:
    """The values of a job's picture that follow from a prepared one."""
    faults = done.report.bad or []
    return {
        "state": PictureState.BAD if faults else PictureState.GOOD,
        "source_sha256": done.source_sha256 or None,
        "prepared_sha256": done.sha256,
        "width": done.width,
        "height": done.height,
        "faults": faults,
        "report": done.report,
    }


def unpack(
    services: Services, manifest: Manifest, folder: Path, labels: Mapping[str, str] | None = None
) -> list[Example]:
    """Copy the pictures of a dataset into `folder`. `labels`: how messages name them, by the hash of the PNG."""
    examples = []
    for example in manifest.examples:
        path = folder / f"{example.sha256}.png"
        services.store.get_file(keys.prepared(example.sha256), path)
        label = (labels or {}).get(example.sha256, "")
        examples.append(Example(path, example.caption, example.sha256, example.width, example.height, label=label))
    return examples
