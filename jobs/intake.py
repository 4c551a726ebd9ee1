"""The pictures of a job: stored ones, and what was prepared before."""

import hashlib
import json
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.errors import ImageInvalid, SpecInvalid
from core.ids import new_id
from jobs import keys
from jobs.requests import Order
from jobs.wiring import House
from storage.tables import JobPicture, Picture, PictureState, PreparedPicture
from training import pictures
from training.dataset import Manifest
from training.ports import Example
from training.spec import TrainSpec


def store_picture(house: House, owner_id: str, subject_id: str, data: bytes) -> str:
    """Keep a picture of an owner's subject; gives the id that `images` may name.

    The same bytes give the same id, also after it was removed: then it is there again.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    with house.database.reading() as session:
        known = session.exec(
            select(Picture).where(
                Picture.owner_id == owner_id, Picture.subject_id == subject_id, Picture.sha256 == sha256
            )
        ).first()
    if known is not None:
        if known.removed_at is not None:
            with house.database.writing() as session:
                session.execute(sa.update(Picture).where(col(Picture.id) == known.id).values(removed_at=None))
        return known.id
    key = keys.original(sha256)
    if not house.store.exists(key):
        house.store.put(key, data)
    picture = Picture(
        id=new_id("pic"),
        owner_id=owner_id,
        subject_id=subject_id,
        sha256=sha256,
        key=key,
        size_bytes=len(data),
    )
    with house.database.writing() as session:
        session.add(picture)
    return picture.id


def rows_for(session: Session, job_id: str, order: Order) -> list[JobPicture]:
    """Rows for the pictures; a stored one that was prepared for this recipe before is done already."""
    images = order.envelope.images
    ids = {image.ref for image in images if "://" not in image.ref}
    stored = {
        picture.id: picture
        for picture in session.exec(
            select(Picture).where(
                col(Picture.id).in_(ids),
                Picture.owner_id == order.envelope.owner_id,
                col(Picture.removed_at).is_(None),
            )
        )
    }
    if missing := sorted(ids - stored.keys()):
        raise SpecInvalid.of(
            {f"images.{index}": "no stored picture of this owner has this id"
             for index, image in enumerate(images) if image.ref in missing}
        )  # fmt: skip
    hashes = {picture.sha256 for picture in stored.values()}
    prepared = {
        row.source_sha256: row
        for row in session.exec(
            select(PreparedPicture).where(
                col(PreparedPicture.source_sha256).in_(hashes),
                PreparedPicture.recipe == preparation(order.spec),
            )
        )
    }
    rows = []
    for position, image in enumerate(images):
        row = JobPicture(job_id=job_id, position=position, reference=image.ref, caption=image.caption)
        if image.ref in stored:
            row.caption = image.caption or stored[image.ref].caption
            row.source_sha256 = stored[image.ref].sha256
            if done := prepared.get(row.source_sha256):
                for name, value in outcome(done).items():
                    setattr(row, name, value)
        rows.append(row)
    return rows


def preparation(spec: TrainSpec) -> str:
    """Name of how pictures are prepared for this spec; a source file is prepared once per name."""
    return f"{spec.resolution}{'-buckets' if spec.aspect_buckets else ''}{'-masked' if spec.objective.masked else ''}"


def convert(house: House, data: bytes, sha256: str, spec: TrainSpec) -> PreparedPicture:
    """Decode a file and prepare it as `spec` wants it; the picture is in the store, the row is the caller's to keep.

    A file that cannot be read gives a row that says why.
    """
    row = PreparedPicture(source_sha256=sha256, recipe=preparation(spec), report="{}")
    try:
        made = house.decoder.prepare(
            data,
            resolution=spec.resolution,
            aspect_buckets=spec.aspect_buckets,
            masked=spec.objective.masked,
        )
    except ImageInvalid as error:
        row.report = json.dumps({"error": error.message, "code": error.code, "bad": ["unreadable"]})
    else:
        bad = [fault for fault in made.report.faults if fault in pictures.BAD_FAULTS]
        row.report = json.dumps(made.report.to_dict() | {"bad": bad})
        row.sha256, row.width, row.height = made.sha256, made.width, made.height
        row.key = keys.prepared(made.sha256)
        house.store.put(row.key, made.png)
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


def unpack(house: House, manifest: Manifest, folder: Path) -> list[Example]:
    """The pictures of a dataset, each in a file of `folder`."""
    examples = []
    for example in manifest.examples:
        path = folder / f"{example.sha256}.png"
        house.store.get_file(keys.prepared(example.sha256), path)
        examples.append(Example(path, example.caption, example.sha256, example.width, example.height))
    return examples
