"""What is being deleted takes nothing new: pictures, trainings and settings are refused until it is gone."""

import hashlib

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.errors import IllegalMove, KeyReused
from storage.database import lock_name
from storage.tables.deletions import DeletedTraining, Deletion, DeletionKind, DeletionState


def lock_owner(session: Session, owner_id: str) -> None:
    """Let deletions of an owner's things, and what is written for this owner, wait for each other."""
    lock_name(session, f"owner {owner_id}")


def refuse_if_deleting(session: Session, owner_id: str, subject_id: str | None = None) -> None:
    """Call it, after `lock_owner`, in a transaction that writes something for an owner. Raises IllegalMove."""
    kind = col(Deletion.kind)
    of_subject = sa.and_(kind == DeletionKind.SUBJECT, col(Deletion.subject_id) == subject_id)
    query = select(Deletion.kind).where(
        Deletion.owner_id == owner_id,
        Deletion.state == DeletionState.RUNNING,
        sa.or_(kind == DeletionKind.OWNER, of_subject),
    )
    if (found := session.exec(query).first()) is not None:
        raise IllegalMove(f"this {found} is being deleted; wait until that is done")


def refuse_deleted_key(session: Session, owner_id: str, key: str) -> None:
    """Raises KeyReused for the idempotency key of a deleted training: a late copy of its request must not start it."""
    deleted = select(DeletedTraining.id).where(DeletedTraining.key_sha256 == key_hash(owner_id, key))
    if (job_id := session.exec(deleted).first()) is not None:
        raise KeyReused(
            f"idempotency key {key!r} belongs to a training that was deleted; use a new key for a new request",
            {"job_id": job_id},
        )


def key_hash(owner_id: str, key: str) -> str:
    """What a deleted training keeps of its idempotency key."""
    return hashlib.sha256(f"{owner_id}\0{key}".encode()).hexdigest()
