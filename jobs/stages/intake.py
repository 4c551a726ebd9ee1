"""The pictures of a job: stored ones, and what was prepared before."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.errors import ImageInvalid, MaskInvalid, SpecInvalid
from core.ids import new_id
from jobs import keys
from jobs.requests.training_request import TrainingRequest
from jobs.services import Services
from storage.tables import JobPicture, PictureState, PreparedPicture, StoredPicture
from training.data import pictures
from training.data.dataset import Manifest
from training.ports import Example
from training.spec import TrainSpec


def store_picture(services: Services, owner_id: str, subject_id: str, data: bytes, *, is_mask: bool = False) -> str:
    """Keep a picture of an owner's subject, or a mask of one; gives the id that `images` may name.

    The same bytes give the same id, also after it was removed: then it is there again.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    with services.database.reading() as session:
        known = session.exec(
            select(StoredPicture).where(
                StoredPicture.owner_id == owner_id,
                StoredPicture.subject_id == subject_id,
                StoredPicture.sha256 == sha256,
                StoredPicture.is_mask == is_mask,
            )
        ).first()
    if known is not None:
        if known.removed_at is not None:
            with services.database.writing() as session:
                session.execute(
                    sa.update(StoredPicture).where(col(StoredPicture.id) == known.id).values(removed_at=None)
                )
        return known.id
    key = keys.original(sha256)
    if not services.store.exists(key):
        services.store.put(key, data)
    picture = StoredPicture(
        id=new_id("pic"),
        owner_id=owner_id,
        subject_id=subject_id,
        sha256=sha256,
        key=key,
        size_bytes=len(data),
        is_mask=is_mask,
    )
    with services.database.writing() as session:
        session.add(picture)
    return picture.id


def rows_for(session: Session, job_id: str, request: TrainingRequest) -> list[JobPicture]:
    """Rows for the pictures; a stored one that was prepared for this recipe before is done already."""
    images = request.envelope.images
    stored = _stored(session, request)
    if missing := {
        name: "no stored picture of this owner has this id"
        for index, image in enumerate(images)
        for name, reference in ((f"images.{index}", image.ref), (f"images.{index}.mask", image.mask))
        if reference and "://" not in reference and reference not in stored
    }:
        raise SpecInvalid.of(missing)
    rows = []
    for position, image in enumerate(images):
        row = JobPicture(job_id=job_id, position=position, reference=image.ref, caption=image.caption, mask=image.mask)
        if image.ref in stored:
            row.caption = image.caption or stored[image.ref].caption
            row.source_sha256 = stored[image.ref].sha256
        rows.append(row)
    # What a picture with a mask is prepared as depends on both: it is known where both are stored.
    recipes = {
        row.position: preparation(request.spec, stored[row.mask].sha256 if row.mask else None)
        for row in rows
        if row.source_sha256 and (row.mask is None or row.mask in stored)
    }
    prepared = _prepared(session, {picture.sha256 for picture in stored.values()}, recipes.values())
    for row in rows:
        if done := prepared.get((row.source_sha256, recipes.get(row.position))):
            for name, value in outcome(done).items():
                setattr(row, name, value)
    return rows


def _stored(session: Session, request: TrainingRequest) -> dict[str, StoredPicture]:
    """The stored pictures that an request names, by id."""
    named = {reference for image in request.envelope.images for reference in (image.ref, image.mask) if reference}
    query = select(StoredPicture).where(
        col(StoredPicture.id).in_({reference for reference in named if "://" not in reference}),
        StoredPicture.owner_id == request.envelope.owner_id,
        col(StoredPicture.removed_at).is_(None),
    )
    return {picture.id: picture for picture in session.exec(query)}


def _prepared(
    session: Session, hashes: Iterable[str], recipes: Iterable[str]
) -> dict[tuple[str | None, str | None], PreparedPicture]:
    query = select(PreparedPicture).where(
        col(PreparedPicture.source_sha256).in_(set(hashes)), col(PreparedPicture.recipe).in_(set(recipes))
    )
    return {(row.source_sha256, row.recipe): row for row in session.exec(query)}


def preparation(spec: TrainSpec, mask_sha256: str | None = None) -> str:
    """Name of how a picture is prepared for this spec, and with which mask; a file is prepared once per name."""
    buckets = "-buckets" if spec.aspect_buckets else ""
    masked = "-masked" if spec.objective.masked else ""
    return f"{spec.resolution}{buckets}{masked}{f'-{mask_sha256}' if mask_sha256 else ''}"


def convert(
    services: Services, data: bytes, sha256: str, spec: TrainSpec, mask: bytes | None = None
) -> PreparedPicture:
    """Decode a file and prepare it as `spec` wants it; the picture is in the store, the row is the caller's to keep.

    A file, or its mask, that cannot be read gives a row that says why.
    """
    recipe = preparation(spec, hashlib.sha256(mask).hexdigest() if mask is not None else None)
    row = PreparedPicture(source_sha256=sha256, recipe=recipe, report="{}")
    try:
        made = services.decoder.prepare(
            data,
            resolution=spec.resolution,
            aspect_buckets=spec.aspect_buckets,
            masked=spec.objective.masked,
            mask=mask,
        )
    except ImageInvalid as error:
        fault = "unusable_mask" if isinstance(error, MaskInvalid) else "unreadable"
        row.report = json.dumps({"error": error.message, "code": error.code, "bad": [fault]})
    else:
        bad = [fault for fault in made.report.faults if fault in pictures.BAD_FAULTS]
        row.report = json.dumps(made.report.to_dict() | {"bad": bad})
        row.sha256, row.width, row.height = made.sha256, made.width, made.height
        row.key = keys.prepared(made.sha256)
        services.store.put(row.key, made.png)
    return row


def outcome(done: PreparedPicture) -> dict[str, Any]:
    """What a prepared picture means for a job's picture."""
    report = json.loads(done.report)
    faults = report.get("bad", [])
    return {
        "state": PictureState.BAD if faults else PictureState.GOOD,
        "source_sha256": done.source_sha256 or None,
        "prepared_sha256": done.sha256,
        "width": done.width,
        "height": done.height,
        "faults": json.dumps(faults),
        "report": done.report,
    }


def unpack(services: Services, manifest: Manifest, folder: Path) -> list[Example]:
    """The pictures of a dataset, each in a file of `folder`."""
    examples = []
    for example in manifest.examples:
        path = folder / f"{example.sha256}.png"
        services.store.get_file(keys.prepared(example.sha256), path)
        examples.append(Example(path, example.caption, example.sha256, example.width, example.height))
    return examples
