"""What must be true of the database after a run, whatever was killed."""

from collections import Counter

from sqlmodel import col, select

from jobs.lifecycle import sweeps
from jobs.services import Services
from storage.tables.audit import AuditEntry
from storage.tables.jobs import Job, JobEvent, Stage, Status


def check(services: Services, jobs: int) -> None:
    """None lost, none twice, each owner's jobs in their order, the audit log complete. Raises AssertionError."""
    with services.database.reading() as session:
        found = session.exec(select(Job).order_by(col(Job.created_at), col(Job.id))).all()
        events = session.exec(select(JobEvent)).all()
        entries = Counter(session.exec(select(AuditEntry.job_id, AuditEntry.action)).all())
    ends = Counter(job.status for job in found)
    if ends != {Status.READY: jobs}:
        raise AssertionError(f"instead of {jobs} ready jobs: {dict(ends)}")
    once = Counter((event.job_id, event.data.get("stage") or event.data.get("status")) for event in events
                   if event.kind in ("stage", "status"))  # fmt: skip
    for job in found:
        for step in (Stage.TRAIN, Stage.UPLOAD, Stage.SETTLE, Status.READY):
            _expect(once[job.id, step] == 1, f"{job.id} came to {step} {once[job.id, step]} times")
        for action in ("job.accepted", "job.ready"):
            _expect(entries[job.id, action] == 1, f"{job.id} has {entries[job.id, action]} entries {action}")
    for owner_id in {job.owner_id for job in found}:
        admitted = [job.admitted_at for job in found if job.owner_id == owner_id]
        _expect(admitted == sorted(admitted), f"the jobs of {owner_id} were not admitted in their order")
    if findings := sweeps.run_audit(services):
        raise AssertionError(findings[0])


def _expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise AssertionError(otherwise)
