"""What each stage does. Every step claims its stage under a lease, works with no session open, and records the
result if the lease still holds. Every step may run twice; twice changes nothing.
"""

import hashlib
import json
import logging
from pathlib import Path

from sqlmodel import Session, col, func, select

from core.errors import ImageRefused, ImageUnreachable, NotFound, ObjectExists, UploadFailed
from core.logging import working_on
from jobs import intake, keys, moves, remote
from jobs.control import JobControl, StoredCheckpoints, StoredPreviews
from jobs.intake import outcome, preparation, unpack
from jobs.leases import Beat, Lease, claim_picture
from jobs.requests import base_model_location
from jobs.shell import NotMine, claim, holder, timed, work_dir, working
from jobs.wiring import House
from storage.database import insert_if_absent
from storage.tables import Job, JobPicture, Picture, PictureState, PreparedPicture, Stage, Status
from training import lora_file, pictures
from training.dataset import Manifest, build_manifest
from training.dataset import Picture as Prepared
from training.ports import TrainResult, TrainRun
from training.spec import MIN_PICTURES, TrainSpec

log = logging.getLogger(__name__)


# ---- preprocess -------------------------------------------------------------------------------------------


def preprocess(house: House, job_id: str, position: int) -> None:
    """Fetch one picture and prepare it, or find that this was done before; record the verdict.

    A picture that cannot be had or read is left out and named; it fails nobody by itself.
    """
    with house.database.writing() as session:
        claimed = claim_picture(session, job_id, position, holder(), house.settings.lease_s)
        if claimed is None:
            raise NotMine(f"{job_id} picture {position} is not waiting")
        lease, picture = claimed
        job = session.get_one(Job, job_id)
        if job.status == Status.PENDING:
            moves.begin(session, job_id)
        spec = TrainSpec.model_validate_json(job.spec)
        # Of a picture with a mask only rows_for knows beforehand; here its files tell.
        known = None if picture.mask else _prepared(session, picture.source_sha256, preparation(spec))
        left = house.settings.max_job_bytes - _fetched(session, job_id)
    with working(house, lease):
        made, size = (known, 0) if known else _prepare(house, lease, picture, spec, left)
        with house.database.writing() as session:
            moves.record_picture(session, lease, source_bytes=size, **outcome(made))
            if made.source_sha256:
                insert_if_absent(session, made)


def _prepared(session: Session, source_sha256: str | None, recipe: str) -> PreparedPicture | None:
    return session.get(PreparedPicture, (source_sha256, recipe)) if source_sha256 else None


def _fetched(session: Session, job_id: str) -> int:
    """Bytes that were fetched for the job's pictures so far."""
    query = select(func.coalesce(func.sum(JobPicture.source_bytes), 0)).where(JobPicture.job_id == job_id)
    return int(session.exec(query).one())


def _prepare(
    house: House, lease: Lease, picture: JobPicture, spec: TrainSpec, left: int
) -> tuple[PreparedPicture, int]:
    """Fetch the source and its mask, of at most `left` bytes, and convert it, or find that this was done before.

    With it the number of bytes fetched. What cannot be had has no source hash.
    """
    files: list[bytes] = []
    try:
        for reference in filter(None, (picture.reference, picture.mask)):
            files.append(_source(house, reference, left - sum(map(len, files))))
    except ImageUnreachable as error:
        if error.retryable and lease.attempt < house.settings.max_attempts:
            raise
        fault, said = ("unusable_mask", f"its mask: {error.message}") if files else ("unreachable", error.message)
        report = {"error": said, "code": error.code, "bad": [fault]}
        return PreparedPicture(source_sha256="", recipe="", report=json.dumps(report)), sum(map(len, files))
    data, mask = files[0], files[1] if picture.mask else None
    sha256, *of_mask = (hashlib.sha256(file).hexdigest() for file in files)
    with house.database.reading() as session:
        done = _prepared(session, sha256, preparation(spec, *of_mask))
    return done or intake.convert(house, data, sha256, spec, mask), sum(map(len, files))


def _source(house: House, reference: str, left: int) -> bytes:
    """A file's bytes: ours if it is stored, else fetched, at most `left`."""
    if "://" in reference:
        if left <= 0:
            raise ImageRefused("the pictures of this job have more bytes than a job may have")
        return house.sources.fetch(reference, max_bytes=min(left, house.settings.max_picture_bytes))
    with house.database.reading() as session:
        stored = session.get_one(Picture, reference)
    try:
        return house.store.get(stored.key)
    except NotFound as error:
        raise ImageUnreachable(f"stored picture {stored.id} is gone from the store") from error


# ---- dataset ----------------------------------------------------------------------------------------------


def dataset(house: House, job_id: str) -> None:
    """Leave out near-duplicates, see that enough is left, write the manifest."""
    lease, job = claim(house, job_id, Stage.DATASET)
    with working(house, lease):
        with house.database.reading() as session:
            rows = _pictures_of(session, job_id)
        duplicates = _leave_out_duplicates(rows)
        good = [row for row in rows if row.state == PictureState.GOOD]
        report = [{"position": row.position, "state": row.state, "faults": json.loads(row.faults)} for row in rows]
        spec = TrainSpec.model_validate_json(job.spec)
        fewest = MIN_PICTURES + spec.validation.held_out
        if len(good) < fewest:
            _record_duplicates(house, lease, duplicates)
            raise moves.too_few(len(good), report, fewest)
        manifest = build_manifest(
            spec, [Prepared(row.prepared_sha256 or "", row.width, row.height, row.caption) for row in good]
        )
        house.store.put(keys.manifest(manifest.sha256), manifest.to_json().encode())
        _record_duplicates(house, lease, duplicates)
        with house.database.writing() as session:
            moves.advance(
                session,
                lease,
                house.settings,
                dataset_sha256=manifest.sha256,
                total_steps=spec.steps(len(good)),
                details=json.dumps({"good": len(good), "of": len(rows), "left_out": len(rows) - len(good)}),
            )


def _pictures_of(session: Session, job_id: str) -> list[JobPicture]:
    query = select(JobPicture).where(JobPicture.job_id == job_id).order_by(col(JobPicture.position))
    return list(session.exec(query))


def _leave_out_duplicates(rows: list[JobPicture]) -> list[JobPicture]:
    good = [row for row in rows if row.state == PictureState.GOOD]
    reports = [pictures.PictureReport.from_dict(json.loads(row.report or "{}")) for row in good]
    repeats = []
    for index, first in pictures.near_duplicates(reports).items():
        row = good[index]
        row.state = PictureState.BAD
        row.faults = json.dumps(["near_duplicate"])
        row.report = json.dumps(json.loads(row.report or "{}") | {"repeats": good[first].position})
        repeats.append(row)
    return repeats


def _record_duplicates(house: House, lease: Lease, rows: list[JobPicture]) -> None:
    if rows:
        with house.database.writing() as session:
            lease.renew(session, house.settings.lease_s)  # or, if it is lost, nothing is written
            for row in rows:
                session.merge(row)


# ---- train ------------------------------------------------------------------------------------------------


def train(house: House, job_id: str) -> None:
    """Train on this worker's device, going on from the last checkpoint; keep the file for `upload`.

    For a remote backend: submit and end, or fetch what was trained there (jobs/remote.py).
    """
    lease, job = claim(house, job_id, Stage.TRAIN)
    if TrainSpec.model_validate_json(job.spec).backend != "local":
        remote.train(house, lease, job)
        return
    with working(house, lease) as beat, work_dir(house, job_id) as folder:
        result = _train(house, lease, job, beat, folder)
        house.store.put_file(keys.output(job_id, result.sha256), result.path)
        with house.database.writing() as session:
            moves.advance(
                session,
                lease,
                house.settings,
                step=result.steps,
                total_steps=result.steps,  # fewer if it ended early: what was trained is what is charged
                loss=result.final_loss,
                validation_loss=result.validation_loss,
                seconds_left=0.0,
                lora_sha256=result.sha256,
                lora_bytes=result.size_bytes,
                train_seconds=col(Job.train_seconds) + result.train_seconds,
            )


def _train(house: House, lease: Lease, job: Job, beat: Beat, folder: Path) -> TrainResult:
    from training.backends.local import train as train_here  # torch: only on workers that train

    spec = TrainSpec.model_validate_json(job.spec)
    manifest = Manifest.from_json(house.store.get(keys.manifest(job.dataset_sha256 or "")))
    return train_here(
        TrainRun(
            job_id=job.id,
            spec=spec,
            examples=unpack(house, manifest, folder),
            dataset_sha256=manifest.sha256,
            base_model=base_model_location(spec, house.settings),
            out=folder / "lora_weights.safetensors",
            checkpoints=StoredCheckpoints(house.store, house.database, lease),
            previews=StoredPreviews(house.store, house.database, lease),
            control=JobControl(house.database, lease, beat, house.settings.training_timeout_s),
            device=house.settings.device,
            precision=house.settings.precision,
            compiled=house.settings.home.resolve() / "compiled" if house.settings.compile == "on" else None,
            slots=house.settings.cohort,
            deterministic=house.settings.deterministic,
            encodings=house.settings.home.resolve() / "encodings",
            training_adapter=house.settings.training_adapters.get(spec.base_model),
        )
    )


# ---- upload -----------------------------------------------------------------------------------------------


def upload(house: House, job_id: str) -> None:
    """Check the file, write it create-only to its final place, read it back and compare."""
    lease, job = claim(house, job_id, Stage.UPLOAD)
    with working(house, lease):
        spec = TrainSpec.model_validate_json(job.spec)
        sha256 = job.lora_sha256 or ""
        data = house.store.get(keys.output(job_id, sha256))
        _compare(data, sha256, "the trained file")
        lora_file.check(data, family=spec.family, rank=spec.rank)
        key = keys.lora(job_id)
        try:
            house.store.put(key, data, create_only=True)
        except ObjectExists:
            log.info("%s is there already; comparing", key)
        _compare(house.store.get(key), sha256, key)
        with house.database.writing() as session:
            moves.advance(session, lease, house.settings, lora_key=key)


def _compare(data: bytes, sha256: str, what: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise UploadFailed(f"{what} has SHA-256 {found} instead of {sha256}")


# ---- settle ----------------------------------------------------------------------------------


def settle(house: House, job_id: str) -> None:
    """Charge, ready, notice: one transaction, so it needs no lease."""
    with working_on(job_id, Stage.SETTLE), timed(Stage.SETTLE), house.database.writing() as session:
        if not moves.settle(session, job_id, house.settings):
            raise NotMine(f"{job_id} has nothing to settle")
