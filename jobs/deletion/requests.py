"""Requests to delete a picture, a subject, a training or an owner: asked for, looked up, undone while they wait."""

import hashlib
from datetime import timedelta
from typing import Literal

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.clock import utcnow
from core.errors import IllegalMove, NotFound
from core.ids import new_id
from core.settings import Settings
from jobs import service
from jobs.deletion import rows
from jobs.deletion.guard import lock_owner, refuse_if_deleting
from jobs.owners import audit_log
from jobs.services import Services
from jobs.view import Time, View
from notifications import outbox
from storage.owners import names_in_use
from storage.tables.access import ApiToken, StoredSession
from storage.tables.deletions import Deletion, DeletionKind, DeletionState
from storage.tables.pictures import StoredPicture

TOPIC = "deletion"  # of the messages that launch one


class DeletionView(View):
    """A deletion, and how far it is. `waiting` ones can be undone until `due_at`."""

    id: str
    kind: DeletionKind
    status: Literal["waiting", "running", "done"]
    owner_id: str | None
    subject_id: str | None
    target_id: str | None
    note: str | None
    created_at: Time
    due_at: Time
    finished_at: Time | None


def delete_training(services: Services, job_id: str, owner_id: str | None = None, grace_s: float = 0) -> DeletionView:
    """Delete a training with its files; an active one is cancelled first. Raises NotFound as `service.get_job` does.

    `grace_s`, here and below: how long it can be undone at least, whatever the settings say.
    """
    with services.database.writing() as session:
        if (done := _find(session, DeletionKind.TRAINING, owner_id, target_id=job_id)) is not None:
            return view_of(done)
        job = service.get_job(session, job_id, owner_id)
        return view_of(
            request(
                session, services.settings, DeletionKind.TRAINING, job.owner_id, job.subject_id, job_id, grace_s=grace_s
            )
        )


def delete_picture(services: Services, picture_id: str) -> DeletionView:
    """Delete a stored picture or mask, once no active training uses it. For operators. Raises NotFound."""
    with services.database.writing() as session:
        picture = session.get(StoredPicture, picture_id)
        if picture is not None:
            return view_of(remove_picture(session, services.settings, picture))
        if (done := _find(session, DeletionKind.PICTURE, None, target_id=picture_id)) is None:
            raise NotFound(f"there is no picture {picture_id}")
        return view_of(done)


def delete_subject(services: Services, owner_id: str, subject_id: str, grace_s: float = 0) -> DeletionView:
    """Delete a subject with its pictures, trainings, LoRA files, drawings and settings.

    Raises NotFound if nothing is stored of it.
    """
    with services.database.writing() as session:
        if not rows.has_subject(session, owner_id, subject_id):
            raise NotFound(f"there is no subject {subject_id}")
        return view_of(request(session, services.settings, DeletionKind.SUBJECT, owner_id, subject_id, grace_s=grace_s))


def delete_owner(services: Services, owner_id: str, grace_s: float = 0) -> DeletionView:
    """Delete an owner with all subjects, tokens and settings. The account's entries stay under a pseudonym.

    Raises NotFound if nothing belongs to an owner of this name.
    """
    with services.database.writing() as session:
        if owner_id not in names_in_use(session.connection()):
            raise NotFound(f"nothing belongs to an owner called {owner_id!a}")
        return view_of(request(session, services.settings, DeletionKind.OWNER, owner_id, grace_s=grace_s))


def get(services: Services, deletion_id: str, owner_id: str | None = None) -> DeletionView:
    """A deletion; one that is done can be read for a month. `owner_id` is the caller; None is an operator.

    Raises NotFound, also for a deletion of another owner.
    """
    with services.database.reading() as session:
        return view_of(_get(session, deletion_id, owner_id))


def find_open(
    services: Services, kind: DeletionKind, owner_id: str, subject_id: str, target_id: str | None = None
) -> DeletionView | None:
    """The deletion of one thing, if it is not done."""
    with services.database.reading() as session:
        found = _find(session, kind, owner_id, subject_id, target_id, is_open=True)
        return None if found is None else view_of(found)


def list_open(
    services: Services, owner_id: str | None = None, limit: int = 100, kind: DeletionKind | None = None
) -> list[DeletionView]:
    """The deletions that are not done, newest first."""
    query = select(Deletion).where(Deletion.state != DeletionState.DONE)
    if kind is not None:
        query = query.where(Deletion.kind == kind)
    if owner_id is not None:
        query = query.where(Deletion.owner_id == owner_id)
    with services.database.reading() as session:
        found = session.exec(query.order_by(col(Deletion.created_at).desc(), col(Deletion.id).desc()).limit(limit))
        return [view_of(one) for one in found]


def undo(services: Services, deletion_id: str, owner_id: str | None = None) -> DeletionView:
    """Undo a deletion that waits; returns it as it was.

    Raises NotFound as `get` does, and IllegalMove once it has begun.
    """
    with services.database.writing() as session:
        deletion = _get(session, deletion_id, owner_id, lock=True)
        before = view_of(deletion)
        if deletion.state != DeletionState.WAITING:
            raise IllegalMove("the deletion has begun and cannot be undone")
        if deletion.kind == DeletionKind.PICTURE:
            back = sa.update(StoredPicture).where(col(StoredPicture.id) == deletion.target_id)
            session.connection().execute(back.values(removed_at=None))
        _log(session, "deletion.undone", deletion)
        session.delete(deletion)
        return before


# ---- written in the caller's transaction ----------------------------------------------------------------------


def remove_picture(session: Session, settings: Settings, picture: StoredPicture, grace_s: float = 0) -> Deletion:
    """Remove a picture from its subject, and delete it once no active training uses it."""
    lock_owner(session, picture.owner_id)
    gone = sa.update(StoredPicture).where(col(StoredPicture.id) == picture.id, col(StoredPicture.removed_at).is_(None))
    session.connection().execute(gone.values(removed_at=utcnow()))
    owner_id, subject_id = picture.owner_id, picture.subject_id
    return request(session, settings, DeletionKind.PICTURE, owner_id, subject_id, picture.id, grace_s=grace_s)


def was_deleted(session: Session, owner_id: str, picture_id: str) -> bool:
    """Whether a picture of this owner was deleted in the last month."""
    return _find(session, DeletionKind.PICTURE, owner_id, target_id=picture_id) is not None


def request(
    session: Session,
    settings: Settings,
    kind: DeletionKind,
    owner_id: str,
    subject_id: str | None = None,
    target_id: str | None = None,
    *,
    grace_s: float = 0,
) -> Deletion:
    """Write a deletion and the message that launches it. A second request for the same thing finds the first one."""
    lock_owner(session, owner_id)
    if (found := _find(session, kind, owner_id, subject_id, target_id, is_open=True)) is not None:
        return found
    refuse_if_deleting(session, owner_id, subject_id)
    now = utcnow()
    due = now + timedelta(seconds=max(settings.deletion_grace_s, grace_s))
    deletion_id = new_id("del")
    deletion = Deletion(
        id=deletion_id,
        kind=kind,
        owner_id=owner_id,
        owner_sha256=_owner_hash(deletion_id, owner_id),
        subject_id=subject_id,
        target_id=target_id,
        state=DeletionState.WAITING if due > now else DeletionState.RUNNING,
        due_at=due,
        next_look_at=now,
        created_at=now,
    )
    session.add(deletion)
    session.flush()
    _log(session, "deletion.requested", deletion)
    launch(session, deletion, settings)
    if deletion.state == DeletionState.RUNNING:
        begin(session, deletion)
    return deletion


def launch(session: Session, deletion: Deletion, settings: Settings) -> None:
    """Queue the message for a worker, and set when the sweep checks that one has taken it."""
    due = max(deletion.due_at, utcnow())
    deletion.leased, deletion.next_look_at = False, due + timedelta(seconds=settings.relaunch_after_s)
    session.add(deletion)
    outbox.put(
        session, "launch", job_id=None, topic=TOPIC, owner_id=deletion.owner_id,
        payload={"deletion_id": deletion.id}, due_at=due,
    )  # fmt: skip


def begin(session: Session, deletion: Deletion) -> None:
    """Begin a deletion: from now on it cannot be undone, and nothing new is accepted for what it deletes."""
    deletion.state = DeletionState.RUNNING
    session.add(deletion)
    if deletion.kind == DeletionKind.OWNER:
        now, owner_id = utcnow(), deletion.owner_id
        tokens = sa.update(ApiToken).where(col(ApiToken.owner_id) == owner_id, col(ApiToken.revoked_at).is_(None))
        session.connection().execute(tokens.values(revoked_at=now))
        open_sessions = sa.update(StoredSession).where(
            col(StoredSession.owner_id) == owner_id, col(StoredSession.ended_at).is_(None)
        )
        session.connection().execute(open_sessions.values(ended_at=now))


def view_of(deletion: Deletion) -> DeletionView:
    """The public view of a deletion."""
    return DeletionView(
        status=DeletionState(deletion.state).value,
        **{name: getattr(deletion, name) for name in DeletionView.model_fields if name != "status"},
    )


def _get(session: Session, deletion_id: str, owner_id: str | None, *, lock: bool = False) -> Deletion:
    deletion = session.get(Deletion, deletion_id, with_for_update=lock or None, populate_existing=True)
    if deletion is None or (owner_id is not None and deletion.owner_sha256 != _owner_hash(deletion_id, owner_id)):
        raise NotFound(f"there is no deletion {deletion_id}")
    return deletion


def _find(
    session: Session,
    kind: DeletionKind,
    owner_id: str | None,
    subject_id: str | None = None,
    target_id: str | None = None,
    *,
    is_open: bool = False,
) -> Deletion | None:
    """The newest deletion of the same thing. `owner_id` None: of any owner. One that is done knows only its target."""
    query = select(Deletion).where(Deletion.kind == kind, Deletion.target_id == target_id)
    if is_open or target_id is None:
        query = query.where(Deletion.state != DeletionState.DONE)
        query = query.where(Deletion.owner_id == owner_id, Deletion.subject_id == subject_id)
    for found in session.exec(query.order_by(col(Deletion.created_at).desc())):
        if owner_id is None or found.owner_sha256 == _owner_hash(found.id, owner_id):
            return found
    return None


def _log(session: Session, action: str, deletion: Deletion) -> None:
    job_id = deletion.target_id if deletion.kind == DeletionKind.TRAINING else None
    audit_log.record(
        session, action, job_id=job_id, owner_id=deletion.owner_id, kind=str(deletion.kind), deletion_id=deletion.id
    )


def _owner_hash(deletion_id: str, owner_id: str) -> str:
    return hashlib.sha256(f"{deletion_id} {owner_id}".encode()).hexdigest()
