"""What was noted about the files of a subject's uploads: the newest lines, until the owner dismisses them."""

from collections.abc import Sequence

import sqlalchemy as sa
from sqlmodel import col

from jobs.deletion import guard
from jobs.services import Services
from storage.database import insert_if_absent
from storage.tables.pictures import Subject

MAX_KEPT = 50


def add(services: Services, owner_id: str, subject_id: str, notes: Sequence[str]) -> None:
    """Keep notes with the subject; the same note is kept once."""
    if not notes:
        return
    with services.database.writing() as session:
        guard.lock_owner(session, owner_id)
        guard.refuse_if_deleting(session, owner_id, subject_id)
        insert_if_absent(session, Subject(owner_id=owner_id, id=subject_id))
        subject = session.get_one(Subject, (owner_id, subject_id), with_for_update=True)
        subject.notes = list(dict.fromkeys([*(subject.notes or []), *notes]))[-MAX_KEPT:]
        session.add(subject)


def get(services: Services, owner_id: str, subject_id: str) -> list[str]:
    """The notes of a subject, oldest first."""
    with services.database.reading() as session:
        subject = session.get(Subject, (owner_id, subject_id))
        return list(subject.notes or []) if subject is not None else []


def dismiss(services: Services, owner_id: str, subject_id: str) -> None:
    """Forget the notes of a subject."""
    change = sa.update(Subject).where(col(Subject.owner_id) == owner_id, col(Subject.id) == subject_id)
    with services.database.writing() as session:
        session.connection().execute(change.values(notes=None))
