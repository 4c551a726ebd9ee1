"""The stage `caption`: pictures without a caption get one, on a training worker or from the application's captioner.

What was said of a picture is kept by its content and the prompt, picture by picture. So a worker that dies loses one
picture, and the next training with the same pictures asks nothing.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from sqlmodel import Session, col, select

from core.errors import LeaseLost
from core.picture_names import picture_label
from jobs import keys, screening
from jobs.captioning import asking, review
from jobs.lifecycle import transitions
from jobs.lifecycle.lease_keeper import HeldLease
from jobs.lifecycle.leases import Lease
from jobs.services import Services
from jobs.specs import spec_of
from jobs.stages.control import JobControl
from jobs.stages.stage_runner import NothingToDo, claim, holding_lease, work_dir
from storage.database import insert_if_absent
from storage.tables.captions import GeneratedCaption
from storage.tables.jobs import Job, JobPicture, PictureState, Stage
from training.captioning import wording
from training.captioning.instructions import Prompt, prompt_for
from training.spec import TrainSpec

log = logging.getLogger(__name__)


def caption(services: Services, job_id: str) -> None:
    """Write the captions that a job lacks. Then the job continues with its dataset, or waits for its owner's review.

    A job whose pictures are still being screened, or whose captions the application has not sent yet, is given back.
    """
    lease, job = claim(services, job_id, Stage.CAPTION)
    settings = services.settings
    with holding_lease(services, lease, settings.training_timeout_s + settings.stage_timeout_s) as held:
        with services.database.reading() as session:
            rows = list(
                session.exec(select(JobPicture).where(JobPicture.job_id == job_id).order_by(col(JobPicture.position)))
            )
        _, waits_for = screening.screen(services, lease, rows)
        waits_for = waits_for or _write_missing(services, lease, job, rows, held)
        if waits_for is None:
            _end(services, lease, job, rows)
    if waits_for is not None:
        raise NothingToDo(f"{job_id}: {waits_for}")
    if job.review:
        raise NothingToDo(f"{job_id} waits for the review of its captions")


def _write_missing(
    services: Services, lease: Lease, job: Job, rows: Sequence[JobPicture], held: HeldLease
) -> str | None:
    """Set the captions of `rows` that have none. Returns what the job waits for, after giving its lease back."""
    spec = spec_of(job)
    wanted = [
        row
        for row in rows
        if row.state == PictureState.GOOD and row.prepared_sha256 and not (row.caption or "").strip()
    ]
    if spec.captions != "auto" or not wanted:
        return None
    prompt = prompt_for(spec, services.settings.caption_task or services.settings.captioner or "")
    hashes = list(dict.fromkeys(row.prepared_sha256 for row in wanted if row.prepared_sha256))
    if services.settings.caption_task is not None:
        said, waits_for = asking.ask_for(services, lease, job, prompt, hashes)
        if waits_for is not None:
            return waits_for
    else:
        said = _caption_here(services, lease, job, prompt, hashes, held)
    is_ours = services.settings.caption_task is None
    for row in wanted:
        text = said[row.prepared_sha256 or ""]
        row.caption = wording.finish(spec, text) if is_ours else text.strip() or None
    return None


def _caption_here(
    services: Services, lease: Lease, job: Job, prompt: Prompt, hashes: Sequence[str], held: HeldLease
) -> dict[str, str]:
    """What the captioner on this worker's device says of the pictures, by their hash."""
    with services.database.reading() as session:
        said = _known(session, job.owner_id, prompt, hashes)
    missing = [sha256 for sha256 in hashes if sha256 not in said]
    if not missing:
        return said
    from training.captioning.captioner import CaptionOrder, write_captions  # torch: only on workers that train

    control = JobControl(services.database, lease, held, services.settings.training_timeout_s)

    def save(texts: Mapping[str, str]) -> None:
        with services.database.writing() as session:
            try:
                lease.write(session, attempt=1)  # only attempts without progress count
            except LeaseLost:
                control.check()
                raise
            for sha256, text in texts.items():
                one = GeneratedCaption(owner_id=job.owner_id, sha256=sha256, prompt_sha256=prompt.sha256, text=text)
                insert_if_absent(session, one)
        said.update(texts)

    with work_dir(services, job.id) as folder:
        pictures = {sha256: folder / f"{sha256}.png" for sha256 in missing}
        _fetch(services, pictures)
        order = CaptionOrder(prompt.captioner, prompt.instruction, pictures, services.settings.device)
        write_captions(order, control.check, save)
    return said


def _fetch(services: Services, pictures: Mapping[str, Path]) -> None:
    for sha256, path in pictures.items():
        services.store.get_file(keys.prepared(sha256), path)


def _known(session: Session, owner_id: str, prompt: Prompt, hashes: Sequence[str]) -> dict[str, str]:
    """What was said before of the owner's pictures with this prompt, by their hash."""
    query = select(GeneratedCaption.sha256, GeneratedCaption.text).where(
        GeneratedCaption.owner_id == owner_id,
        GeneratedCaption.prompt_sha256 == prompt.sha256,
        col(GeneratedCaption.sha256).in_(hashes),
    )
    return {sha256: text for sha256, text in session.exec(query) if text is not None}


def _end(services: Services, lease: Lease, job: Job, rows: Sequence[JobPicture]) -> None:
    """Record the captions, and send the job on."""
    notes = _notes(spec_of(job), rows)
    with services.database.writing() as session:
        lease.renew(session, services.settings.lease_s)  # raises if the lease is lost: then nothing is written
        for row in rows:
            stored = session.get_one(JobPicture, (row.job_id, row.position))
            stored.caption = row.caption
            session.add(stored)
        if notes:
            job_notes = session.get_one(Job, job.id).notes or []
            lease.write(session, notes=[*job_notes, *(note for note in notes if note not in job_notes)])
        if job.review:
            review.begin(session, lease, services.settings)
        else:
            transitions.advance(session, lease, services.settings, needs_captions=False, waiting_note=None)


def _notes(spec: TrainSpec, rows: Sequence[JobPicture]) -> list[str]:
    """A note on each picture that the captioner had nothing to say about."""
    if spec.captions != "auto":
        return []
    return [
        f"{picture_label(row.position, row.name)}: the captioner said nothing, so the template is its caption"
        for row in rows
        if row.state == PictureState.GOOD and not row.caption
    ]
