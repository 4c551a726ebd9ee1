"""Objects under their own hash, which several owners may use: they are deleted with their last user.

A writer puts the object, records its use in a transaction with `record_use`, and then calls `make_sure`. A transaction
that ends a use calls `note_unused`. `collect` looks each noted object up under a lock on its key, marks it, deletes it
with no transaction open, and removes the mark. So whatever comes in between:

- a use that was recorded before the mark keeps the object;
- `record_use` refuses an object that is marked, until it is deleted;
- a use that was recorded after the deletion finds the object missing in `make_sure`, which writes it again.
"""

import logging
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TypeVar

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.clock import utcnow
from core.errors import StoreUnavailable
from jobs import keys
from jobs.lifecycle.periodic import each
from jobs.services import Services
from storage.database import insert_if_absent, lock_name
from storage.tables.captions import GeneratedCaption
from storage.tables.deletions import UnusedObject
from storage.tables.jobs import ACTIVE, Job, JobPicture
from storage.tables.pictures import PreparedPicture, StoredPicture
from storage.tables.screening import Screening

log = logging.getLogger(__name__)

# After this time, a deletion that has not ended was killed: a call to an object store takes at most two minutes.
_DELETION_ENDS = timedelta(minutes=5)
_PATIENCE_S, _PAUSE_S = 10.0, 0.1

Result = TypeVar("Result")


class ObjectBeingDeleted(StoreUnavailable):
    """A process is deleting the object now. It may be written again in a moment."""


# ---- for writers ----------------------------------------------------------------------------------------------


_AMONG_THEM = col(UnusedObject.key).in_(sa.bindparam("used", expanding=True))
_MARKED = sa.select(col(UnusedObject.key)).where(_AMONG_THEM, col(UnusedObject.deleting_since).is_not(None)).limit(1)


def record_use(session: Session, *used: str) -> None:
    """Lock the keys, in the transaction that records a use of their objects. Raises ObjectBeingDeleted."""
    for key in sorted(used):
        _lock(session, key)
    if (found := session.execute(_MARKED, {"used": used}).scalar()) is not None:
        raise ObjectBeingDeleted("the same file is being deleted; try again in a moment", {"key": found})


def with_patience(work: Callable[[], Result]) -> Result:
    """The result of `work`, which is repeated for a while if it raises ObjectBeingDeleted."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return work()
        except ObjectBeingDeleted:
            if time.monotonic() > until:
                raise
        time.sleep(_PAUSE_S)


def make_sure(services: Services, key: str, data: bytes) -> None:
    """Write the object again if it was deleted before its use was recorded."""
    if not services.store.exists(key):
        services.store.put(key, data)


# ---- for deletions --------------------------------------------------------------------------------------------


def note_unused(session: Session, unused: Iterable[str]) -> None:
    """Note that these objects have lost a user. Call it in the transaction that ends the use."""
    for key in sorted(set(unused)):
        insert_if_absent(session, UnusedObject(key=key))


def files_of(source_sha256: str | None, prepared_sha256: str | None, dataset_sha256: str | None = None) -> list[str]:
    """The keys of the objects that these hashes name."""
    found = [keys.original(source_sha256)] if source_sha256 else []
    if prepared_sha256:
        found += [keys.prepared(prepared_sha256), keys.thumbnail(prepared_sha256)]
    return found + ([keys.manifest(dataset_sha256)] if dataset_sha256 else [])


def collect(services: Services) -> int:
    """Delete the noted objects that nothing uses any more. Returns how many were looked at."""
    count = 0
    while True:  # an original that is deleted may leave prepared pictures unused
        stale = utcnow() - _DELETION_ENDS
        free = sa.or_(col(UnusedObject.deleting_since).is_(None), col(UnusedObject.deleting_since) < stale)
        with services.database.reading() as session:
            found = session.exec(select(UnusedObject.key).where(free).order_by(col(UnusedObject.key)).limit(500)).all()
        done = each("unused objects", found, lambda key: _collect_one(services, key))
        count += len(done)
        if not found or len(done) < len(found):
            return count


def collect_orphans(services: Services) -> int:
    """Note and delete the shared objects that no row names: their writer died before it recorded their use.

    It lists the whole store, so call it rarely. Returns how many objects were looked at.
    """
    for prefix in ("originals/", "prepared/", "thumbnails/", "datasets/"):
        batch: list[str] = []
        for key in services.store.list(prefix):
            batch.append(key)
            if len(batch) == 500:
                _note_orphans(services, batch)
                batch = []
        _note_orphans(services, batch)
    return collect(services)


def _note_orphans(services: Services, found: list[str]) -> None:
    with services.database.reading() as session:
        orphans = [key for key in found if not _is_used(session, key)]
    if orphans:
        with services.database.writing() as session:
            note_unused(session, orphans)


def _collect_one(services: Services, key: str) -> None:
    with services.database.writing() as session:
        _lock(session, key)
        if key.startswith("originals/"):
            _forget_prepared(session, key.rpartition("/")[2])
        if _is_used(session, key):
            session.connection().execute(sa.delete(UnusedObject).where(col(UnusedObject.key) == key))
            return
        if key.startswith("prepared/"):
            sha256 = key.rpartition("/")[2].partition(".")[0]
            for table in (Screening, GeneratedCaption):
                session.connection().execute(sa.delete(table).where(col(table.sha256) == sha256))
        mark = sa.update(UnusedObject).where(col(UnusedObject.key) == key)
        session.connection().execute(mark.values(deleting_since=utcnow()))
    services.store.delete(key)
    with services.database.writing() as session:
        session.connection().execute(sa.delete(UnusedObject).where(col(UnusedObject.key) == key))


def _forget_prepared(session: Session, sha256: str) -> None:
    """Forget what a source or mask was prepared to, if no stored picture and no job's picture comes from it."""
    if _exists(session, col(StoredPicture.sha256) == sha256):
        return
    stale = col(PreparedPicture.recipe).endswith(f"-{sha256}", autoescape=True)  # this file was the mask
    if not _exists(session, col(JobPicture.source_sha256) == sha256):
        stale = sa.or_(stale, col(PreparedPicture.source_sha256) == sha256)
    gone = session.connection().execute(sa.delete(PreparedPicture).where(stale).returning(col(PreparedPicture.sha256)))
    note_unused(session, [key for (prepared,) in gone for key in files_of(None, prepared)])


def _is_used(session: Session, key: str) -> bool:
    sha256 = key.rpartition("/")[2].partition(".")[0]
    match key.partition("/")[0]:
        case "originals":
            return _exists(session, col(StoredPicture.sha256) == sha256)
        case "prepared":
            return _exists(session, col(JobPicture.prepared_sha256) == sha256) or _exists(
                session, col(PreparedPicture.sha256) == sha256
            )
        case "thumbnails":
            return _exists(session, col(StoredPicture.preview_key) == key)
        case "datasets":  # only workers on the job read it
            return _exists(session, sa.and_(col(Job.dataset_sha256) == sha256, col(Job.status).in_(ACTIVE)))
    return True


def _exists(session: Session, condition: sa.ColumnElement[bool]) -> bool:
    return bool(session.connection().execute(sa.select(sa.exists().where(condition))).scalar())


def _lock(session: Session, key: str) -> None:
    lock_name(session, f"object {key}")
