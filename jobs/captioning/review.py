"""The review: a job waits, without a worker and at no cost, until its owner has seen its captions and accepts them.

The captions are those of the owner's stored pictures, so they are listed, changed and changed back as at any time
(`jobs.subjects.captions`). A picture that came from an address is no stored picture; `accept` takes its caption.
"""

from collections.abc import Mapping

from sqlmodel import Session, col, select

from core.errors import IllegalMove, SpecInvalid
from core.picture_names import picture_label
from core.settings import Settings
from jobs import service
from jobs.lifecycle import transitions
from jobs.lifecycle.leases import Lease
from jobs.owners import audit_log
from jobs.services import Services
from jobs.subjects import captions as subject_captions
from jobs.view import JobView, Time, View
from storage.tables.jobs import Job, JobPicture, PictureState, Stage
from storage.tables.pictures import StoredPicture
from training.spec import MAX_CAPTION_CHARACTERS


class ReviewedCaption(View):
    """The caption of one picture of a job. `picture_id`: of the owner's stored picture, if it is one."""

    position: int
    name: str | None
    picture_id: str | None
    caption: str | None


class Review(View):
    """The captions that a job waits with, and until when. `captions` are those that it will be trained with."""

    job_id: str
    until: Time
    captions: list[ReviewedCaption]


def begin(session: Session, lease: Lease, settings: Settings) -> None:
    """Have the job wait for its owner. Its captions become those of the stored pictures, which can be taken back."""
    job = session.get_one(Job, lease.job_id)
    by_subject: dict[str, dict[str, str | None]] = {}
    for row, stored in _pairs(session, job):
        if stored is not None and row.caption:
            by_subject.setdefault(stored.subject_id, {})[stored.id] = row.caption
    for subject_id, texts in by_subject.items():
        subject_captions.record(session, job.owner_id, subject_id, texts, kind="auto")
    transitions.begin_review(session, lease, settings)


def get(services: Services, job_id: str, owner_id: str | None = None) -> Review:
    """The captions that wait for a review. Raises NotFound, and IllegalMove for a job that does not wait for one."""
    with services.database.reading() as session:
        job = _job_in_review(session, job_id, owner_id)
        return Review(job_id=job.id, until=job.next_look_at, captions=[_view(*pair) for pair in _pairs(session, job)])


def accept(
    services: Services, job_id: str, owner_id: str | None = None, captions: Mapping[int, str | None] | None = None
) -> JobView:
    """Train with the captions as they are now. The job waits for its turn again.

    `captions` replaces some, by the picture's position, from 0; None or blanks remove one. Accepted again, nothing
    changes. Raises NotFound, SpecInvalid, and IllegalMove for a job that does not wait for a review.
    """
    with services.database.writing() as session:
        session.get(Job, job_id, with_for_update=True)
        job = service.get_job(session, job_id, owner_id)
        if job.review and job.stage != Stage.REVIEW and not job.needs_captions and not captions:
            return service.get(services, job_id, owner_id)
        job = _job_in_review(session, job_id, owner_id)
        pairs = _pairs(session, job)
        given = _checked(captions or {}, [row for row, _ in pairs])
        for row, stored in pairs:
            if row.position in given:
                row.caption = given[row.position]
            elif stored is not None and stored.removed_at is None:
                row.caption = stored.caption
            session.add(row)
        session.flush()
        transitions.end_review(session, job, services.settings)
        audit_log.record(session, "job.reviewed", job_id=job.id, owner_id=job.owner_id)
    return service.get(services, job_id, owner_id)


def _job_in_review(session: Session, job_id: str, owner_id: str | None) -> Job:
    job = service.get_job(session, job_id, owner_id)
    if job.stage != Stage.REVIEW or job.finished_at is not None:
        raise IllegalMove(
            f"job {job_id} does not wait for a review of its captions: it is {job.status}, at {job.stage}"
        )
    return job


def _pairs(session: Session, job: Job) -> list[tuple[JobPicture, StoredPicture | None]]:
    """The job's usable pictures, each with the stored picture that it is, if any."""
    query = select(JobPicture).where(JobPicture.job_id == job.id, JobPicture.state == PictureState.GOOD)
    rows = session.exec(query.order_by(col(JobPicture.position))).all()
    named = select(StoredPicture).where(
        col(StoredPicture.id).in_({row.reference for row in rows}), StoredPicture.owner_id == job.owner_id
    )
    stored = {picture.id: picture for picture in session.exec(named)}
    return [(row, stored.get(row.reference)) for row in rows]


def _view(row: JobPicture, stored: StoredPicture | None) -> ReviewedCaption:
    is_there = stored is not None and stored.removed_at is None
    caption = stored.caption if stored is not None and is_there else row.caption
    return ReviewedCaption(
        position=row.position, name=row.name, picture_id=stored.id if stored and is_there else None, caption=caption
    )


def _checked(captions: Mapping[int, str | None], rows: list[JobPicture]) -> dict[int, str | None]:
    known = {row.position for row in rows}
    faults, found = {}, {}
    for position, text in captions.items():
        plain = (text or "").strip() or None
        if position not in known:
            faults[f"captions.{position}"] = f"{picture_label(position, None)} is none of this training's good pictures"
        elif plain is not None and len(plain) > MAX_CAPTION_CHARACTERS:
            faults[f"captions.{position}"] = f"has {len(plain)} characters; at most {MAX_CAPTION_CHARACTERS}"
        elif plain is not None and "\x00" in plain:
            faults[f"captions.{position}"] = "contains a null character"
        found[position] = plain
    if faults:
        raise SpecInvalid.of(faults)
    return found
