"""What must be true of the database after a run, whatever was killed."""

from collections import Counter
from collections.abc import Iterable

from sqlmodel import Session, col, select

from jobs.lifecycle import sweeps
from jobs.services import Services
from storage.tables.audit import AuditEntry
from storage.tables.jobs import Job, JobEvent, Stage, Status


def check(services: Services, jobs: int) -> None:
    """None lost, none twice, each owner's jobs in their order, the audit log complete. Raises AssertionError."""
    with services.database.reading() as session:
        found = session.exec(select(Job).order_by(col(Job.created_at), col(Job.id))).all()
        events = session.exec(select(JobEvent)).all()
        unlogged = missing_entries(session, found)
    ends = Counter(job.status for job in found)
    if ends != {Status.READY: jobs}:
        raise AssertionError(f"instead of {jobs} ready jobs: {dict(ends)}")
    once = Counter((event.job_id, event.data.get("stage") or event.data.get("status")) for event in events
                   if event.kind in ("stage", "status"))  # fmt: skip
    for job in found:
        for step in (Stage.TRAIN, Stage.UPLOAD, Stage.SETTLE, Status.READY):
            _expect(once[job.id, step] == 1, f"{job.id} came to {step} {once[job.id, step]} times")
    for owner_id in {job.owner_id for job in found}:
        admitted = [job.admitted_at for job in found if job.owner_id == owner_id and job.admitted_at]
        _expect(admitted == sorted(admitted), f"the jobs of {owner_id} were not admitted in their order")
    _expect(not unlogged, "; ".join(unlogged))
    if findings := sweeps.run_audit(services):
        raise AssertionError(findings[0])


def missing_entries(session: Session, jobs: Iterable[Job]) -> list[str]:
    """The final jobs that have not exactly one entry in the audit log of their acceptance and one of their end."""
    entries = Counter(session.exec(select(AuditEntry.job_id, AuditEntry.action)).all())
    wanted = [(job.id, action) for job in jobs if job.finished_at for action in ("job.accepted", f"job.{job.status}")]
    return [f"{job_id}: {entries[job_id, action]} entries {action}"
            for job_id, action in wanted if entries[job_id, action] != 1]  # fmt: skip


def _expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise AssertionError(otherwise)
