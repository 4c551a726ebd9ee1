"""The work on one deletion. Every step may run twice, and one that died half-way is launched again by the sweep.

Files first, then the rows that name them, and the names in the deletion itself last: whatever is left, the next run
finds.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.clock import utcnow
from core.errors import ImprintError
from core.telemetry.logging import job_context
from jobs import keys, shared_objects
from jobs.deletion import requests, rows
from jobs.drawings import deletion as drawings
from jobs.lifecycle import transitions
from jobs.remote import polls
from jobs.services import Services
from jobs.stages import stage_runner
from storage.tables.deletions import DeletedTraining, Deletion, DeletionKind, DeletionState, StoredDrawing
from storage.tables.jobs import ACTIVE, Job
from storage.tables.pictures import StoredPicture

log = logging.getLogger(__name__)

# Deletes the results of Celery tasks from the result store. Raises Unreachable while that is away.
ForgetResults = Callable[[Iterable[str]], None]

_NOTICE_PATIENCE = timedelta(minutes=10)  # for the notice of a job's end, before it is deleted unsent
_KEPT = timedelta(days=30)  # how long a deletion that is done can be read


def run(services: Services, deletion_id: str, forget_results: ForgetResults) -> bool:
    """Do what is left of a deletion. Returns whether it is done; if not, the sweep launches it again."""
    deletion = _claim(services, deletion_id)
    if deletion is None:
        return False
    try:
        reason = _Run(services, deletion, forget_results).work()
    except ImprintError as error:  # a server that does not answer
        reason = error.message
    if reason is None:
        log.info("deletion %s (%s) is done", deletion.id, deletion.kind)
        services.database.empty_log()
        return True
    log.info("deletion %s waits: %s", deletion.id, reason)
    with services.database.writing() as session:
        later = {"leased": False, "note": reason, "next_look_at": utcnow() + _lease(services) / 4}
        session.connection().execute(sa.update(Deletion).where(col(Deletion.id) == deletion.id).values(**later))
    return False


def sweep(services: Services) -> int:
    """Launch the deletions that no worker works on, and forget those that were done a month ago. Returns how many."""
    now = utcnow()
    lost = select(Deletion).where(Deletion.state != DeletionState.DONE, col(Deletion.next_look_at) < now)
    with services.database.writing() as session:
        found = session.exec(lost.limit(100).with_for_update(skip_locked=True)).all()
        for deletion in found:
            requests.launch(session, deletion, services.settings)
        connection = session.connection()
        connection.execute(sa.delete(Deletion).where(col(Deletion.finished_at) < now - _KEPT))
        old = sa.update(DeletedTraining).where(col(DeletedTraining.deleted_at) < now - _KEPT)
        connection.execute(old.values(key_sha256=None))
    shared_objects.collect(services)
    return len(found)


def _lease(services: Services) -> timedelta:
    """How long a worker has a deletion; it is extended before each job and picture."""
    return timedelta(seconds=2 * services.settings.lease_s)


def _claim(services: Services, deletion_id: str) -> Deletion | None:
    """Take the deletion for this worker; None if it is done or not due, or another worker has it."""
    now = utcnow()
    with services.database.writing() as session:
        deletion = session.get(Deletion, deletion_id, with_for_update=True)
        if deletion is None or deletion.state == DeletionState.DONE or deletion.due_at > now:
            return None
        if deletion.leased and deletion.next_look_at > now:
            return None
        if deletion.state == DeletionState.WAITING:
            requests.begin(session, deletion)
        deletion.leased, deletion.next_look_at = True, now + _lease(services)
        session.add(deletion)
        session.flush()
    return deletion


class _Run:
    """One run of a deletion."""

    def __init__(self, services: Services, deletion: Deletion, forget_results: ForgetResults) -> None:
        self._services, self._deletion, self._forget_results = services, deletion, forget_results
        self._owner_id = deletion.owner_id or ""

    def work(self) -> str | None:
        """Do what can be done now. Returns what the rest waits for; None if the deletion is done."""
        kind, subject_id = self._deletion.kind, self._deletion.subject_id
        of_all = subject_id if kind == DeletionKind.SUBJECT else None
        waits: list[str | None] = []
        match kind:
            case DeletionKind.PICTURE:
                waits += self._delete_pictures([self._deletion.target_id or ""], only_removed=True)
            case DeletionKind.TRAINING:
                job_id = self._deletion.target_id or ""
                waits += self._delete_jobs([job_id])
                self._delete_drawings(None, job_id)
            case _:
                with self._services.database.reading() as session:
                    jobs = rows.jobs_of(session, self._owner_id, of_all)
                waits += self._delete_jobs(jobs)
                with self._services.database.reading() as session:
                    pictures = rows.pictures_of(session, self._owner_id, of_all)
                waits += self._delete_pictures(pictures)
                self._delete_drawings(of_all)
        shared_objects.collect(self._services)
        reason = next(filter(None, waits), None) or self._quiet()
        if reason is None:
            self._finish(of_all)
        return reason

    # ---- trainings ----

    def _delete_jobs(self, job_ids: Sequence[str]) -> list[str | None]:
        for job_id in job_ids:  # first of all, nothing trains on what is deleted
            with job_context(job_id), self._services.database.writing() as session:
                is_drawn = drawings.stop(session, self._services, job_id)
                if transitions.cancel(session, job_id, self._services.settings) or is_drawn:
                    self._be_quiet(session)
        return [self._delete_job(job_id) for job_id in job_ids]

    def _delete_job(self, job_id: str) -> str | None:
        services = self._services
        self._renew()
        with job_context(job_id):
            with services.database.reading() as session:
                job = session.get(Job, job_id)
                task_ids = rows.task_ids_of(session, job_id)
                if job is None:
                    return None
                if rows.has_waiting_notices(session, job_id) and utcnow() < self._deletion.due_at + _NOTICE_PATIENCE:
                    return "the end of a training is still to be announced"
            stage_runner.delete_files(services, job_id, job.public_model_id)
            drawings.delete_files(services, job_id)
            polls.clear_job(services, job_id)
            with services.database.reading() as session:
                if rows.has_remote_runs(session, job_id):
                    return "a training is still to be deleted from its remote server"
            self._forget_results(task_ids)
            with services.database.writing() as session:
                job = session.get(Job, job_id, with_for_update=True)
                if job is not None and job.status not in ACTIVE:
                    if drawings.stop(session, services, job_id):  # asked for since
                        self._be_quiet(session)
                    drawings.delete_rows(session, job_id, self._deletion.id)
                    rows.delete_job(session, job, self._deletion.id)
        return None

    def _be_quiet(self, session: Session) -> None:
        """Note until when a worker that has just lost its job may still write a file of it."""
        quiet_at = utcnow() + timedelta(seconds=2 * self._services.settings.lease_s)
        change = sa.update(Deletion).where(col(Deletion.id) == self._deletion.id)
        session.connection().execute(change.values(quiet_at=quiet_at))
        self._deletion.quiet_at = quiet_at

    def _quiet(self) -> str | None:
        """Delete what was written after a job was stopped, once that can be all."""
        if self._deletion.quiet_at is None:
            return None
        if self._deletion.quiet_at > utcnow():
            return "a worker may still write a file of a training that was stopped"
        with self._services.database.reading() as session:
            mine = select(DeletedTraining).where(DeletedTraining.deletion_id == self._deletion.id)
            stopped = session.exec(mine).all()
        for job in stopped:
            self._renew()
            stage_runner.delete_files(self._services, job.id, job.model_id or job.id)
            self._services.store.delete_prefix(keys.drawing(job.id))  # the id may be a drawing's
        shared_objects.collect_orphans(self._services)
        return None

    # ---- pictures and drawings ----

    def _delete_pictures(self, picture_ids: Sequence[str], *, only_removed: bool = False) -> list[str | None]:
        return [self._delete_picture(picture_id, only_removed) for picture_id in picture_ids]

    def _delete_picture(self, picture_id: str, only_removed: bool) -> str | None:
        self._renew()
        with self._services.database.writing() as session:
            picture = session.get(StoredPicture, picture_id, with_for_update=True)
            if picture is None or (only_removed and picture.removed_at is None):  # it was uploaded again
                return None
            if rows.is_in_training(session, picture):
                return "an active training uses a picture"
            rows.erase_picture(session, picture)
        return None

    def _delete_drawings(self, subject_id: str | None, job_id: str | None = None) -> None:
        with self._services.database.reading() as session:
            found = rows.drawings_of(session, self._owner_id, subject_id, job_id)
        for drawing in found:
            self._renew()
            self._services.store.delete_prefix(keys.drawing(drawing.id))
            self._forget_results([drawing.task_id])
            with self._services.database.writing() as session:
                session.connection().execute(sa.delete(StoredDrawing).where(col(StoredDrawing.id) == drawing.id))

    # ---- the deletion itself ----

    def _renew(self) -> None:
        with self._services.database.writing() as session:
            mine = sa.update(Deletion).where(col(Deletion.id) == self._deletion.id)
            session.connection().execute(mine.values(next_look_at=utcnow() + _lease(self._services)))

    def _finish(self, subject_id: str | None) -> None:
        kind = self._deletion.kind
        with self._services.database.writing() as session:
            deletion = session.get_one(Deletion, self._deletion.id, with_for_update=True, populate_existing=True)
            if deletion.state == DeletionState.DONE:
                return
            if kind in (DeletionKind.SUBJECT, DeletionKind.OWNER):
                rows.delete_subject(session, self._owner_id, subject_id)
            if kind == DeletionKind.OWNER:
                rows.delete_owner(session, self._owner_id)
                rows.forget_others(session, self._owner_id, deletion.id)
            deletion.state = DeletionState.DONE
            rows.forget(session, deletion, utcnow())
