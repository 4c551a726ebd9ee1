"""Deletion of the drawings of a training, as part of the training's own deletion."""

from collections.abc import Sequence

import sqlalchemy as sa
from sqlmodel import Session, col, select

from jobs import keys
from jobs.drawings import drawing_transitions as transitions
from jobs.services import Services
from notifications.tables import OutboxMessage
from storage.tables.deletions import DeletedTraining
from storage.tables.drawings import DrawingRow


def stop(session: Session, services: Services, job_id: str) -> bool:
    """Cancel the open drawings of a job. Returns whether there were any, whose workers may still write a picture."""
    cancelled = [transitions.cancel(session, one, services.settings) for one in ids_of(session, job_id)]
    return any(cancelled)


def delete_files(services: Services, job_id: str) -> None:
    """Delete the pictures of a job's drawings from the object store."""
    with services.database.reading() as session:
        found = ids_of(session, job_id)
    for drawing_id in found:
        services.store.delete_prefix(keys.drawing(drawing_id))


def delete_rows(session: Session, job_id: str, deletion_id: str | None) -> None:
    """Delete the rows of a job's drawings and their messages. Their ids stay, since the ledger names them."""
    text = sa.type_coerce(col(OutboxMessage.payload), sa.Text)
    connection = session.connection()
    for drawing_id in ids_of(session, job_id):
        session.add(DeletedTraining(id=drawing_id, deletion_id=deletion_id))
        about = text.contains(drawing_id, autoescape=True)
        connection.execute(
            sa.delete(OutboxMessage).where(col(OutboxMessage.topic) == transitions.TOPIC, about)
        )  # fmt: skip
        connection.execute(sa.delete(DrawingRow).where(col(DrawingRow.id) == drawing_id))


def ids_of(session: Session, job_id: str) -> Sequence[str]:
    """The ids of a job's drawings."""
    return session.exec(select(DrawingRow.id).where(DrawingRow.job_id == job_id)).all()
