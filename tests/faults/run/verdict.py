"""Judge the outcome of every accepted training, with the terms of the last line.

- lost: an order that never became a job, or a job whose row is gone, or a `ready` one whose file is not in the store
  with the SHA-256 that was recorded, or does not pass the check of a LoRA file.
- stuck: a job that is not final when the quiet time is over.
- double_charged: jobs with more than one settlement, with a settlement though they failed, or with one above the
  price of the steps that were trained; and accounts that spent more than their jobs' prices come to.
- unnotified: a final job with a `webhook_url` whose receiver never answered 2xx to a well-signed notice of its end,
  or was notified of another status than the one in the database.
- left behind: credits still held by a final job; checkpoints, outputs or unpacked files of one; a second job for one
  key. These have no field of their own in the last line, but fail the run.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlmodel import Session, col, select

from benchmarks.fairness.checks import missing_entries
from core.errors import ImprintError
from credits.audit import audit
from credits.price import Rate, price
from credits.tables import CreditAccount, CreditEntry, CreditHold
from jobs.specs import spec_of
from jobs.stages import stage_runner
from storage.tables.jobs import ACTIVE, Job, Status
from tests.faults.run.owners import Owners
from tests.faults.run.plan import Plan
from tests.faults.run.world import World
from training.families.registry import FAMILIES
from training.lora import file as lora_file

_WEBHOOK_STATUS = {Status.READY: "completed", Status.FAILED: "failed", Status.CANCELLED: "failed"}


@dataclass
class Verdict:
    """Who is what, by job id or order; `findings` says why, for people."""

    jobs: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    lost: set[str] = field(default_factory=set)
    stuck: set[str] = field(default_factory=set)
    double_charged: set[str] = field(default_factory=set)
    unnotified: set[str] = field(default_factory=set)
    left_behind: set[str] = field(default_factory=set)
    audit_ok: bool = True
    findings: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        broken = (self.lost, self.stuck, self.double_charged, self.unnotified, self.left_behind)
        return self.audit_ok and not any(broken)

    def blame(self, whom: str, group: set[str], why: str) -> None:
        group.add(whom)
        self.findings.append(f"{whom}: {why}")


def judge(world: World, owners: Owners, plan: Plan) -> Verdict:
    """Look at everything, once the processes have ended and all servers answer."""
    verdict = Verdict(jobs=len(owners.accepted))
    with world.site.services.database.reading() as session:
        jobs = list(session.exec(select(Job)))
        known = {job.id: job for job in jobs}
        for order in plan.orders:
            job_id = owners.accepted.get(order.number)
            if job_id is None:
                verdict.blame(f"order {order.number}", verdict.lost, "was sent until the end and never became a job")
            elif job_id not in known:
                verdict.blame(job_id, verdict.lost, "was accepted, and there is no such row")
        for job_id in [*owners.duplicates, *(job.id for job in jobs if job.id not in owners.accepted.values())]:
            verdict.blame(job_id, verdict.left_behind, "is a job more than orders")
        _judge_charges(session, jobs, verdict)
        for finding in audit(session):
            verdict.audit_ok = False
            verdict.findings.append(f"audit: {finding}")
        for missing in missing_entries(session, jobs):
            verdict.audit_ok = False
            verdict.findings.append(f"audit log: {missing}")
    world.listen()
    for job in jobs:
        _judge_job(world, job, world.heard.get(job.id, []), verdict)
    return verdict


def waits(world: World) -> list[str]:
    """What the run still waits for: jobs that are not final or not notified, or that left data behind."""
    with world.site.services.database.reading() as session:
        jobs = list(session.exec(select(Job)))
    active = [f"{job.id} {job.stage}" for job in jobs if job.status in ACTIVE]
    if active:
        return active
    untold = [f"{job.id} not notified" for job in jobs if job.webhook_url and not world.heard.get(job.id)]
    return untold or _left_in_store(world, jobs)


def _judge_job(world: World, job: Job, heard: Sequence[str], verdict: Verdict) -> None:
    if job.status in ACTIVE:
        verdict.blame(
            job.id, verdict.stuck,
            f"{job.status}, {job.stage}, attempt {job.attempt}, launches {job.launches}, "
            f"lease until {job.lease_until}, next look {job.next_look_at}",
        )  # fmt: skip
        return
    verdict.ends[job.status] += 1
    if job.status == Status.FAILED:
        verdict.codes[job.failure_code or "no code"] += 1
    if job.status == Status.READY and (why := _file_fault(world, job)):
        verdict.blame(job.id, verdict.lost, why)
    if job.webhook_url and set(heard) != {_WEBHOOK_STATUS[Status(job.status)]}:
        verdict.blame(job.id, verdict.unnotified, f"is {job.status}, and its receiver heard {list(heard) or 'nothing'}")
    for key in _left_in_store(world, [job]):
        verdict.blame(job.id, verdict.left_behind, f"left {key}")


def _file_fault(world: World, job: Job) -> str | None:
    """What is wrong with a ready job's file."""
    try:
        data = world.site.services.store.get(job.lora_key or "")
        spec = spec_of(job)
        lora_file.check_trained(data, spec)
    except ImprintError as error:
        return f"is ready, and its file: {error}"
    found = hashlib.sha256(data).hexdigest()
    return None if found == job.lora_sha256 else f"is ready, and its file has SHA-256 {found} and not {job.lora_sha256}"


def _left_in_store(world: World, jobs: Sequence[Job]) -> list[str]:
    """What final jobs have left in the store, and anybody in the work folders."""
    status = {job.id: job.status for job in jobs}
    store, found = world.site.services.store, []
    for prefix in ("checkpoints/", "outputs/", "models/"):
        for key in store.list(prefix):
            owner = status.get(key.split("/")[1], Status.PENDING)
            if owner not in ACTIVE and not (prefix == "models/" and owner == Status.READY):
                found.append(key)
    stage_runner.clear_dead_work_dirs(
        world.site.services
    )  # what a worker does when it starts: some were killed for good
    work = world.site.settings.home / "work"
    return found + [str(path) for path in work.glob("*/*") if any(job_id in path.name for job_id in status)]


def _judge_charges(session: Session, jobs: Sequence[Job], verdict: Verdict) -> None:
    """Money, by the journal and not by what the jobs say of themselves."""
    entries = list(session.exec(select(CreditEntry).where(col(CreditEntry.kind) == "settle")))
    settled: dict[str, list[int]] = {}
    for entry in entries:
        settled.setdefault(entry.training_id or "", []).append(entry.amount)
    due: Counter[str] = Counter()
    for job in jobs:
        charges = settled.get(job.id, [])
        most = _most(job)
        due[job.owner_id] += most
        if len(charges) > 1 or sum(charges) > most:
            verdict.blame(job.id, verdict.double_charged, f"is {job.status} and was charged {charges}, at most {most}")
        if job.status == Status.READY and sum(charges) != most:
            verdict.blame(job.id, verdict.left_behind, f"is ready, costs {most} and was charged {charges}")
    for account in session.exec(select(CreditAccount)):
        if account.spent > due[account.owner_id]:
            why = f"spent {account.spent}, its jobs cost {due[account.owner_id]}"
            verdict.blame(account.owner_id, verdict.double_charged, why)
    status = {job.id: job.status for job in jobs}
    for hold in session.exec(select(CreditHold).where(CreditHold.state == "held")):
        if status.get(hold.training_id) not in ACTIVE:
            verdict.blame(hold.training_id, verdict.left_behind, f"is final and still holds {hold.amount} credits")


def _most(job: Job) -> int:
    """What a job may be charged: the price of its steps; nothing for one that failed, was never begun, or goes on."""
    steps = {Status.READY: job.total_steps, Status.CANCELLED: job.step}.get(Status(job.status), 0)
    spec = spec_of(job)
    known = FAMILIES[spec.family].price
    return price(Rate(known.credits, known.resolution), steps, spec.resolution) if steps else 0
