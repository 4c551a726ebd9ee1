"""The rows that a deletion removes. Every function works in the caller's transaction; files are noted and go later."""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlmodel import Session, SQLModel, col, select

from core.ids import new_id
from credits.tables import CreditAccount
from jobs import shared_objects
from jobs.deletion.guard import key_hash
from notifications.messages import CONFIRMATION, EXTERNAL, WAITING
from notifications.tables import DisabledReceiver, NoticePreferences, OutboxMessage, TaskCall
from storage.database import insert_if_absent
from storage.tables.access import ApiToken, StoredSession
from storage.tables.admission import OwnerShare
from storage.tables.audit import AuditEntry, UsageLimit
from storage.tables.captions import CaptionChange, GeneratedCaption
from storage.tables.deletions import DeletedTraining, Deletion, StoredDrawing
from storage.tables.fetches import StoredImageFetch
from storage.tables.jobs import ACTIVE, Job, JobEvent, JobPicture, PictureState
from storage.tables.pictures import StoredPicture, Subject
from storage.tables.remote import RemoteRun

_GONE = "deleted"  # in place of a picture's address or id


# ---- trainings ------------------------------------------------------------------------------------------------


def has_waiting_notices(session: Session, job_id: str) -> bool:
    """Whether the end of the job is still to be announced."""
    message = OutboxMessage.__table__  # type: ignore[attr-defined]
    waiting = sa.select(
        sa.exists().where(message.c.job_id == job_id, message.c.kind.in_((*EXTERNAL, CONFIRMATION)), WAITING)
    )
    return bool(session.connection().execute(waiting).scalar())


def has_remote_runs(session: Session, job_id: str) -> bool:
    """Whether the job may still be on a remote server."""
    return bool(
        session.connection().execute(
            sa.select(sa.exists().where(col(RemoteRun.job_id) == job_id, col(RemoteRun.cleared_at).is_(None)))
        ).scalar()
    )  # fmt: skip


def task_ids_of(session: Session, job_id: str) -> Sequence[str]:
    """The Celery tasks of applications whose results are about the job."""
    return session.exec(select(TaskCall.task_id).where(TaskCall.job_id == job_id)).all()


def delete_job(session: Session, job: Job, deletion_id: str) -> None:
    """Delete a final job with all that is about it. Its id stays, for the ledger."""
    pictures = session.exec(select(JobPicture).where(JobPicture.job_id == job.id)).all()
    _note_files(session, pictures, job)
    key = job.idempotency_key
    kept = DeletedTraining(
        id=job.id,
        key_sha256=key_hash(job.owner_id, key) if key else None,
        deletion_id=deletion_id,
        model_id=job.public_model_id,
    )
    insert_if_absent(session, kept)
    # Alerts are about no job in their columns, but name it in their text.
    text = sa.type_coerce(col(OutboxMessage.payload), sa.Text)
    _delete(session, OutboxMessage, col(OutboxMessage.kind) == "alert", text.contains(job.id, autoescape=True))
    for table in (OutboxMessage, TaskCall, RemoteRun, JobEvent, JobPicture):
        _delete(session, table, col(table.job_id) == job.id)
    _delete(session, Job, col(Job.id) == job.id)


def _note_files(session: Session, pictures: Sequence[JobPicture], job: Job) -> None:
    """Note what a job's pictures use in the object store, and forget what a captioner said of them."""
    found = shared_objects.files_of(None, None, job.dataset_sha256)
    hashes = {picture.prepared_sha256 for picture in pictures}
    _delete(
        session,
        GeneratedCaption,
        col(GeneratedCaption.owner_id) == job.owner_id,
        col(GeneratedCaption.sha256).in_(hashes),
    )
    for picture in pictures:
        found += shared_objects.files_of(picture.source_sha256, picture.prepared_sha256)
    shared_objects.note_unused(session, found)


# ---- pictures -------------------------------------------------------------------------------------------------


def is_in_training(session: Session, picture: StoredPicture) -> bool:
    """Whether an active job uses the picture or mask."""
    uses = sa.exists().where(
        col(Job.id) == col(JobPicture.job_id), col(Job.status).in_(ACTIVE), *_uses(picture.owner_id, picture.id)
    )
    return bool(session.connection().execute(sa.select(uses)).scalar())


def erase_picture(session: Session, picture: StoredPicture) -> None:
    """Delete a stored picture, and what final jobs still know of it."""
    used = select(JobPicture, Job).where(col(Job.id) == col(JobPicture.job_id), *_uses(picture.owner_id, picture.id))
    for of_job, job in session.exec(used).all():
        erase_job_picture(session, of_job, job)
    found = shared_objects.files_of(picture.sha256, None)
    shared_objects.note_unused(session, found + ([picture.preview_key] if picture.preview_key else []))
    changes = select(CaptionChange).where(*_of(CaptionChange, picture.owner_id, picture.subject_id))
    for change in session.exec(changes.with_for_update()).all():
        if picture.id in change.before:
            change.before = {name: text for name, text in change.before.items() if name != picture.id}
            session.add(change)
    session.flush()
    _delete(session, StoredPicture, col(StoredPicture.id) == picture.id)


def erase_job_picture(session: Session, picture: JobPicture, job: Job) -> None:
    """Leave of one picture of a final job that it was there, and its state."""
    _note_files(session, [picture], job)
    change = sa.update(JobPicture).where(
        col(JobPicture.job_id) == picture.job_id, col(JobPicture.position) == picture.position
    )
    nothing = dict.fromkeys(("name", "caption", "mask", "source_sha256", "prepared_sha256", "report"))
    session.connection().execute(change.values(reference=_GONE, **nothing))


def forget_fetched(session: Session, job_id: str) -> None:
    """Forget what was fetched ahead for a job that ended before its turn (`jobs.stages.ahead`)."""
    fetched = (col(JobPicture.job_id) == job_id, col(JobPicture.source_bytes) > 0)
    for picture in session.exec(select(JobPicture).where(*fetched)):
        shared_objects.note_unused(session, shared_objects.files_of(picture.source_sha256, picture.prepared_sha256))
    nothing = dict.fromkeys(("source_sha256", "prepared_sha256", "report"))
    change = sa.update(JobPicture).where(*fetched)
    session.connection().execute(change.values(state=PictureState.WAITING, source_bytes=0, faults=[], **nothing))


def _uses(owner_id: str, picture_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        col(Job.owner_id) == owner_id,
        sa.or_(col(JobPicture.reference) == picture_id, col(JobPicture.mask) == picture_id),
    )


# ---- subjects and owners --------------------------------------------------------------------------------------


def has_subject(session: Session, owner_id: str, subject_id: str) -> bool:
    """Whether something is stored of a subject."""
    tables = (StoredPicture, Job, StoredImageFetch, StoredDrawing)
    found = [sa.exists().where(*_of(table, owner_id, subject_id)) for table in tables]
    found.append(sa.exists().where(col(Subject.owner_id) == owner_id, col(Subject.id) == subject_id))
    return bool(session.connection().execute(sa.select(sa.or_(*found))).scalar())


def delete_subject(session: Session, owner_id: str, subject_id: str | None) -> None:
    """Delete what is left of a subject, or of all subjects of an owner, once its jobs and pictures are gone."""
    for table in (StoredImageFetch, CaptionChange):
        _delete(session, table, *_of(table, owner_id, subject_id))
    subjects = [col(Subject.owner_id) == owner_id]
    _delete(session, Subject, *subjects, *([] if subject_id is None else [col(Subject.id) == subject_id]))
    messages = select(OutboxMessage).where(OutboxMessage.owner_id == owner_id, col(OutboxMessage.job_id).is_(None))
    for message in session.exec(messages.where(OutboxMessage.topic != "deletion")).all():
        about = message.payload.get("job") or message.payload
        if subject_id is None or subject_id in (about.get("subject_id"), about.get("subject"), None):
            session.delete(message)


def delete_owner(session: Session, owner_id: str) -> str:
    """Delete what is left of an owner, and give the account a pseudonym. Returns that."""
    _delete(session, StoredSession, col(StoredSession.owner_id) == owner_id)
    tokens = select(ApiToken.id).where(ApiToken.owner_id == owner_id)
    _delete(session, StoredSession, col(StoredSession.token_id).in_(tokens))
    for table in (ApiToken, NoticePreferences, DisabledReceiver, OwnerShare, UsageLimit):
        _delete(session, table, col(table.owner_id) == owner_id)
    pseudonym = new_id("deleted")
    entries = sa.update(AuditEntry).where(col(AuditEntry.owner_id) == owner_id)
    session.connection().execute(entries.values(owner_id=pseudonym))
    account = sa.update(CreditAccount).where(col(CreditAccount.owner_id) == owner_id)
    session.connection().execute(account.values(owner_id=pseudonym))
    return pseudonym


def forget(session: Session, deletion: Deletion, now: datetime) -> None:
    """Take the names out of a deletion that is done, and delete its messages."""
    text = sa.type_coerce(col(OutboxMessage.payload), sa.Text)
    _delete(session, OutboxMessage, col(OutboxMessage.topic) == "deletion", text.contains(deletion.id, autoescape=True))
    of_deletion = sa.update(DeletedTraining).where(col(DeletedTraining.deletion_id) == deletion.id)
    session.connection().execute(of_deletion.values(deletion_id=None, model_id=None))
    deletion.owner_id = deletion.subject_id = deletion.note = None
    deletion.leased, deletion.finished_at = False, now
    session.add(deletion)


def forget_others(session: Session, owner_id: str, deletion_id: str) -> None:
    """End the owner's other deletions: what they would delete is gone."""
    others = select(Deletion).where(Deletion.owner_id == owner_id, Deletion.id != deletion_id)
    for other in session.exec(others).all():
        text = sa.type_coerce(col(OutboxMessage.payload), sa.Text)
        _delete(
            session, OutboxMessage, col(OutboxMessage.topic) == "deletion", text.contains(other.id, autoescape=True)
        )
        session.delete(other)


def drawings_of(
    session: Session, owner_id: str, subject_id: str | None, job_id: str | None = None
) -> Sequence[StoredDrawing]:
    """The drawings of a subject, of all subjects of an owner, or with the LoRA of one job."""
    query = select(StoredDrawing).where(*_of(StoredDrawing, owner_id, subject_id))
    return session.exec(query if job_id is None else query.where(StoredDrawing.job_id == job_id)).all()


def pictures_of(session: Session, owner_id: str, subject_id: str | None) -> Sequence[str]:
    """The ids of the stored pictures and masks of a subject, or of all subjects of an owner."""
    return session.exec(select(StoredPicture.id).where(*_of(StoredPicture, owner_id, subject_id))).all()


def jobs_of(session: Session, owner_id: str, subject_id: str | None) -> Sequence[str]:
    """The ids of the jobs of a subject, or of all subjects of an owner; active ones first, to stop them soon."""
    query = select(Job.id).where(*_of(Job, owner_id, subject_id))
    return session.exec(query.order_by(col(Job.status).in_(ACTIVE).desc(), col(Job.id))).all()


def _of(
    table: type[StoredPicture | Job | StoredImageFetch | StoredDrawing | CaptionChange],
    owner_id: str,
    subject_id: str | None,
) -> list[sa.ColumnElement[bool]]:
    found = [col(table.owner_id) == owner_id]
    return found if subject_id is None else [*found, col(table.subject_id) == subject_id]


def _delete(session: Session, table: type[SQLModel], *conditions: sa.ColumnElement[bool]) -> None:
    session.connection().execute(sa.delete(table).where(*conditions))
