"""The stage preprocess: fetch and prepare pictures, one after the other."""

import time

from sqlmodel import Session, col, func, select

from core.errors import LeaseLost
from core.picture_names import picture_label
from core.settings import Settings
from jobs import keys, shared_objects
from jobs.lifecycle import transitions
from jobs.lifecycle.leases import Lease, claim_picture
from jobs.services import Services
from jobs.specs import spec_of
from jobs.stages.intake import picture_values, preparation
from jobs.stages.picture_source import fetch_and_convert, prepared_before
from jobs.stages.stage_runner import NothingToDo, holding_lease, worker_name
from jobs.turns import RetryLater, owner_slot
from storage.database import insert_if_absent
from storage.tables.jobs import ACTIVE, Job, JobPicture, Status
from storage.tables.pictures import PreparedPicture

# How long one message prepares pictures of an owner. What is left then is sent again, so that others get a turn.
_GROUP_S = 5.0


def preprocess(services: Services, job_id: str, *positions: int) -> None:
    """Fetch and prepare pictures one after the other, each unless that was done before, and record their states.

    A picture that is refused or cannot be read is left out and named; it does not fail the job by itself. One whose
    server does not answer is tried again for `fetch_patience_s`. Then it fails the job, unless that `allow_missing`.
    Raises RetryLater for the pictures that are left, also if the owner's other pictures take its share of this worker.
    """
    with services.database.reading() as session:
        owner_id = session.scalar(select(Job.owner_id).where(Job.id == job_id, col(Job.status).in_(ACTIVE)))
    if owner_id is None:  # do not let it wait for a slot
        raise NothingToDo(f"{job_id} is final or deleted")
    until = time.monotonic() + _GROUP_S
    later: list[tuple[int, RetryLater]] = []
    left, reason = list(positions), NothingToDo(f"{job_id}: no picture is waiting")
    is_any_done = False
    with owner_slot(services, owner_id):
        while left and (time.monotonic() < until or left == list(positions)):
            position = left.pop(0)
            try:
                _preprocess(services, job_id, position)
                is_any_done = True
            except NothingToDo as nothing:
                reason = nothing
            except RetryLater as again:
                later.append((position, again))
    if left or later:
        first = later[0][1] if later else RetryLater("other work gets a turn", 0.0)
        delay_s = 0.0 if left else min(retry.delay_s for _, retry in later)
        raise RetryLater(str(first.args[0]), delay_s, (job_id, *left, *(position for position, _ in later))) from first
    if not is_any_done:
        raise reason


def _preprocess(services: Services, job_id: str, position: int) -> None:
    with services.database.writing() as session:
        claimed = claim_picture(session, job_id, position, worker_name(), services.settings.lease_s)
        if claimed is None:
            raise NothingToDo(f"{job_id}: {picture_label(position, None)} is not waiting")
        lease, picture = claimed
        job = session.get_one(Job, job_id)
        if job.status == Status.PENDING:
            transitions.begin(session, job_id)
        known = known_picture(session, job, picture)
        left = bytes_left(session, job_id, services.settings)
    with holding_lease(services, lease):
        made, size = (known, 0) if known else fetch_and_convert(services, job, picture, left)
        record(services, lease, job, picture, made, size, left)


def known_picture(session: Session, job: Job, picture: JobPicture) -> PreparedPicture | None:
    """What a picture was prepared to before for the job's recipe."""
    if picture.mask:  # the preparation depends on the mask's content, which is not known yet
        return None
    return prepared_before(session, picture.source_sha256, preparation(spec_of(job), crop=picture.crop))


def record(
    services: Services, lease: Lease, job: Job, picture: JobPicture, made: PreparedPicture, size: int, left: int
) -> None:
    """Record what the picture was prepared to, and the bytes that were fetched. Raises LeaseLost.

    left: the bytes that may be fetched if the prepared picture was deleted meanwhile.
    """
    try:
        with services.database.writing() as session:
            since = None if made.source_sha256 else picture.unreachable_since
            values = {**picture_values(made), "source_bytes": size, "unreachable_since": since}
            transitions.record_picture(session, lease, **values)
            if made.source_sha256:
                insert_if_absent(session, made)
            if made.sha256:
                shared_objects.record_use(session, keys.prepared(made.sha256))
    except LeaseLost:
        _note_prepared(services, made)  # if the job was deleted, nothing else names it
        raise
    if made.sha256 and not services.store.exists(keys.prepared(made.sha256)):
        # It was deleted with its last user while this job found it.
        fetch_and_convert(services, job, picture, left, again=True)


def _note_prepared(services: Services, made: PreparedPicture) -> None:
    with services.database.writing() as session:
        shared_objects.note_unused(session, shared_objects.files_of(made.source_sha256, made.sha256))


def bytes_left(session: Session, job_id: str, settings: Settings) -> int:
    """The number of bytes that may still be fetched for the job's pictures."""
    query = select(func.coalesce(func.sum(JobPicture.source_bytes), 0)).where(JobPicture.job_id == job_id)
    return settings.max_job_bytes - int(session.exec(query).one())
