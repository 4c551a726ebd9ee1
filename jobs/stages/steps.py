"""The steps: what each stage from dataset on does (preprocess: preprocessing.py).

A step claims its stage under a lease, works with no session open, and records the result if the lease is still valid.
A step may run twice: the second run changes nothing.
"""

import hashlib
import logging
from pathlib import Path

from sqlmodel import Session, col, select

from core.errors import ImagesMissing, ImprintError, ObjectExists, TooFewImages, UploadFailed
from core.picture_names import picture_label
from core.telemetry.logging import stage_context
from jobs import keys, screening, shared_objects
from jobs.lifecycle import transitions
from jobs.lifecycle.lease_keeper import HeldLease
from jobs.lifecycle.leases import Lease
from jobs.remote import train_stage
from jobs.services import Services
from jobs.specs import spec_of
from jobs.stages.control import JobControl, StoredCheckpoints, StoredLoras, StoredPreviews, device
from jobs.stages.intake import unpack
from jobs.stages.stage_runner import NothingToDo, claim, holding_lease, timed_stage, work_dir
from storage.picture_report import StoredReport
from storage.tables.jobs import Job, JobPicture, PictureState, Stage
from training.data.dataset import DatasetPicture, Manifest, build_manifest
from training.data.quality import near_duplicates
from training.lora import file as lora_file
from training.lora.readers import readers
from training.lora.reading import read_lora
from training.ports import TrainResult, TrainRun
from training.spec import MIN_PICTURES, base_model_location

log = logging.getLogger(__name__)


# ---- dataset ----------------------------------------------------------------------------------------------


def dataset(services: Services, job_id: str) -> None:
    """Leave out refused pictures and near-duplicates, check that enough are left, and write the manifest.

    A job whose pictures are still being screened is given back and waits.
    """
    lease, job = claim(services, job_id, Stage.DATASET)
    with holding_lease(services, lease):
        with services.database.reading() as session:
            rows = _list_pictures(session, job_id)
        refused, waits_for = screening.screen(services, lease, rows)
        if waits_for is None:
            _build_dataset(services, lease, job, rows, refused)
    if waits_for is not None:
        raise NothingToDo(f"{job_id}: {waits_for}")


def _build_dataset(
    services: Services, lease: Lease, job: Job, rows: list[JobPicture], refused: list[JobPicture]
) -> None:
    left_out = [*refused, *_leave_out_duplicates(rows)]
    good = [row for row in rows if row.state == PictureState.GOOD]
    spec = spec_of(job)
    fewest = MIN_PICTURES + spec.validation.held_out
    if len(good) < fewest:
        _record_left_out(services, lease, left_out)
        raise _too_few_images(rows, fewest)
    manifest = build_manifest(
        spec, [DatasetPicture(row.prepared_sha256 or "", row.width, row.height, row.caption) for row in good]
    )
    key, content = keys.manifest(manifest.sha256), manifest.to_json().encode()
    services.store.put(key, content)
    _record_left_out(services, lease, left_out)
    with services.database.writing() as session:
        transitions.advance(
            session,
            lease,
            services.settings,
            dataset_sha256=manifest.sha256,
            waiting_note=None,  # of a picture that was unreachable for a while
            total_steps=spec.steps(len(good)),
        )
        shared_objects.record_use(session, key)
    shared_objects.make_sure(services, key, content)


def _too_few_images(rows: list[JobPicture], minimum: int) -> ImprintError:
    """The error for a job with fewer than `minimum` good pictures, with what is wrong with each of the others.

    ImagesMissing if there would be enough with those whose servers did not answer.
    """
    bad = [row for row in rows if row.state != PictureState.GOOD]
    away = [row for row in bad if row.unreachable_since is not None]
    named = "; ".join(f"{picture_label(row.position, row.name)}: {', '.join(row.faults)}" for row in bad)
    report = [{"position": row.position, "name": row.name, "state": row.state, "faults": row.faults} for row in rows]
    kind = ImagesMissing if len(rows) - len(bad) + len(away) >= minimum else TooFewImages
    return kind(f"{len(rows) - len(bad)} good pictures of at least {minimum} ({named})", {"pictures": report})


def _list_pictures(session: Session, job_id: str) -> list[JobPicture]:
    query = select(JobPicture).where(JobPicture.job_id == job_id).order_by(col(JobPicture.position))
    return list(session.exec(query))


def _leave_out_duplicates(rows: list[JobPicture]) -> list[JobPicture]:
    good = [row for row in rows if row.state == PictureState.GOOD]
    reports = [row.report or StoredReport() for row in good]
    repeats = []
    for index, first in near_duplicates(reports).items():
        row = good[index]
        row.state = PictureState.BAD
        row.faults = ["near_duplicate"]
        same = good[first]
        error = f"nearly the same as {picture_label(same.position, same.name)}"
        row.report = reports[index].model_copy(update={"repeats": same.position, "error": error})
        repeats.append(row)
    return repeats


def _record_left_out(services: Services, lease: Lease, rows: list[JobPicture]) -> None:
    if rows:
        with services.database.writing() as session:
            lease.renew(session, services.settings.lease_s)  # raises if the lease is lost: then nothing is written
            for row in rows:
                session.merge(row)


# ---- train ------------------------------------------------------------------------------------------------


def train(services: Services, job_id: str) -> None:
    """Train on this worker's device from the last checkpoint on, and store the file for `upload`.

    For a remote backend, submit the training or fetch its file (jobs/remote/train_stage.py).
    """
    lease, job = claim(services, job_id, Stage.TRAIN)
    if spec_of(job).backend != "local":
        train_stage.train(services, lease, job)
        return
    limit_s = services.settings.training_timeout_s + services.settings.stage_timeout_s
    with holding_lease(services, lease, limit_s) as held, work_dir(services, job_id) as folder:
        result = _train(services, lease, job, held, folder)
        services.store.put_file(keys.output(job_id, result.sha256), result.path)
        with services.database.writing() as session:
            transitions.advance(
                session,
                lease,
                services.settings,
                step=result.steps,
                total_steps=result.steps,  # fewer if it stopped early: only the trained steps are charged
                loss=result.final_loss,
                validation_loss=result.validation_loss,
                seconds_left=0.0,
                lora_sha256=result.sha256,
                lora_bytes=result.size_bytes,
                train_seconds=col(Job.train_seconds) + result.train_seconds,
                device=device.name,
            )


def _train(services: Services, lease: Lease, job: Job, held: HeldLease, folder: Path) -> TrainResult:
    from training.backends.local import train as train_here  # torch: only on workers that train

    spec = spec_of(job)
    with services.database.reading() as session:
        rows = _list_pictures(session, job.id)
    labels = {row.prepared_sha256: picture_label(row.position, row.name) for row in rows if row.prepared_sha256}
    manifest = Manifest.from_json(services.store.get(keys.manifest(job.dataset_sha256 or "")))
    control = JobControl(services.database, lease, held, services.settings.training_timeout_s)
    return train_here(
        TrainRun(
            job_id=job.id,
            spec=spec,
            examples=unpack(services, manifest, folder, labels),
            dataset_sha256=manifest.sha256,
            base_model=base_model_location(spec.base_model, services.settings.base_models),
            out=folder / "lora_weights.safetensors",
            checkpoints=StoredCheckpoints(services.store, services.database, lease),
            checkpoint_every_epochs=spec.checkpoint_every,
            loras=_kept_loras(services, lease, job) if spec.keep_checkpoints else None,
            previews=StoredPreviews(services.store, services.database, lease),
            baseline=True,
            control=control,
            note=control.note,
            device=services.settings.device,
            precision=services.settings.precision,
            quantise=services.settings.quantise_base,
            slots=services.settings.cohort,
            deterministic=services.settings.deterministic,
            encodings=services.settings.home.resolve() / "encodings",
            training_adapter=services.settings.training_adapters.get(spec.base_model),
        )
    )


def _kept_loras(services: Services, lease: Lease, job: Job) -> StoredLoras:
    return StoredLoras(services.store, services.database, lease, job.public_model_id)


# ---- upload -----------------------------------------------------------------------------------------------


def upload(services: Services, job_id: str) -> None:
    """Check the file, write it to its final key (create only), read it back and compare."""
    lease, job = claim(services, job_id, Stage.UPLOAD)
    with holding_lease(services, lease):
        spec = spec_of(job)
        sha256 = job.lora_sha256 or ""
        data = services.store.get(keys.output(job_id, sha256))
        _compare(data, sha256, "the trained file")
        lora_file.check_trained(data, spec)
        key = keys.lora(job.public_model_id)
        try:
            services.store.put(key, data, create_only=True)
        except ObjectExists:
            log.info("%s exists already and is compared", key)
        _compare(services.store.get(key), sha256, key)
        with services.database.writing() as session:
            transitions.advance(session, lease, services.settings, lora_key=key, readers=readers(read_lora(data)))


def _compare(data: bytes, sha256: str, what: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise UploadFailed(f"{what} has SHA-256 {found} instead of {sha256}")


# ---- settle ----------------------------------------------------------------------------------


def settle(services: Services, job_id: str) -> None:
    """Charge, mark ready, queue the notice: one transaction, so it needs no lease."""
    with stage_context(job_id, Stage.SETTLE), timed_stage(Stage.SETTLE), services.database.writing() as session:
        if not transitions.settle(session, job_id, services.settings):
            raise NothingToDo(f"{job_id} has nothing to settle")
