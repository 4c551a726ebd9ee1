"""Pictures of jobs that wait for their turn, prepared by a fetch worker that has nothing else to do.

Nothing is claimed and no message is sent, so a job whose turn comes meanwhile waits for nothing: the ordinary stage
claims the picture, and what was prepared here is not recorded for it. A killed worker leaves at most a file that no row
names, which `shared_objects.collect_orphans` deletes.
"""

import logging
import random
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator
from functools import cache

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.errors import ImprintError, LeaseLost
from core.telemetry import metrics
from core.telemetry.logging import job_context
from jobs.admission.queues import every_queue, is_waiting
from jobs.lifecycle.leases import Lease
from jobs.services import Services
from jobs.stages.control import leaving
from jobs.stages.picture_source import fetch_and_convert
from jobs.stages.preprocessing import bytes_left, known_picture, record
from storage.database import AWAY
from storage.tables.admission import AdmissionPause
from storage.tables.jobs import Job, JobPicture, PictureState, Stage
from storage.tables.pictures import PreparedPicture

log = logging.getLogger(__name__)

_LOOK_S = 2.0  # between two looks for a job, while there is nothing to prepare
_BUSY_S = 0.2  # between two looks whether this worker is still busy
_MOST_GIVEN_UP = 10_000
_AMONG = 16  # of so many waiting pictures of a job, one is taken by chance: two workers rarely take the same


class Ahead:
    """Prepares pictures of the jobs that come next, one at a time, while no task of this worker needs a slot.

    It claims no slot, moves no credits, and changes nothing of a job but its pictures. A job with a picture that cannot
    be fetched now is left to the ordinary stage, which has the patience and the words for it.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._given_up: OrderedDict[str, None] = OrderedDict()  # jobs

    def run(self) -> None:
        """Prepare until this worker stops."""
        pause = threading.Event()
        while not leaving.is_set():
            pause.wait(self._step())

    def _step(self) -> float:
        """Prepare a picture if this worker is idle. Returns for how many seconds to wait."""
        if self._services.slots.is_any_taken:
            return _BUSY_S
        try:
            return 0.0 if self.prepare_next() else _LOOK_S
        except AWAY:
            return _LOOK_S
        except Exception:  # of one job: the ordinary stage will tell
            log.exception("a picture could not be prepared ahead")
            return _LOOK_S

    def prepare_next(self) -> bool:
        """Prepare one picture of a job that waits for its turn. Returns False if there is none to prepare."""
        with self._services.database.reading() as session:
            found = self._next_picture(session)
            if found is None:
                return False
            job, picture = found
            known = known_picture(session, job, picture)
            left = bytes_left(session, job.id, self._services.settings)
        with job_context(job.id):
            outcome = "failed"
            try:
                outcome = self._prepare(job, picture, known, left)
            finally:
                metrics.PICTURES_AHEAD.add(1, outcome)
                if outcome == "failed":
                    self._give_up(job.id)
        return True

    def _prepare(self, job: Job, picture: JobPicture, known: PreparedPicture | None, left: int) -> str:
        """Prepare a picture and record it, unless a worker has claimed it meanwhile. Returns the outcome."""
        try:
            made, size = (known, 0) if known else fetch_and_convert(self._services, job, picture, left)
            if not made.source_sha256:
                return "failed"
            # The token of the last claim, which is over: a claim that came since then has a higher one.
            unclaimed = Lease(job.id, Stage.PREPROCESS, picture.lease_token, picture.attempt, picture.position)
            record(self._services, unclaimed, job, picture, made, size, left)
        except LeaseLost:
            return "overtaken"
        except ImprintError as error:
            log.info("picture %d is left for the job's turn: %s", picture.position + 1, error.message)
            return "failed"
        return "prepared"

    def _give_up(self, job_id: str) -> None:
        self._given_up[job_id] = None
        if len(self._given_up) > _MOST_GIVEN_UP:
            self._given_up.popitem(last=False)

    def _next_picture(self, session: Session) -> tuple[Job, JobPicture] | None:
        """A picture that no worker has begun with, of the first job that has one."""
        for job_id in self._jobs(session):
            job = session.get(Job, job_id)
            if job is not None and (pictures := _untouched(session, job_id)):
                return job, random.choice(pictures)  # noqa: S311
        return None

    def _jobs(self, session: Session) -> Iterator[str]:
        """The jobs that come next, by queue, each with a picture to prepare."""
        paused = set(session.exec(select(AdmissionPause.scope)))
        most = self._services.settings.prepare_ahead
        for queue in [] if "all" in paused else _waiting_queues(session):
            if f"queue:{queue}" in paused:
                continue
            ids = [
                job_id
                for job_id in self._services.places.come_next(session, queue, most)
                if job_id not in self._given_up
            ]
            unprepared = _unprepared(session, ids, [scope.removeprefix("family:") for scope in paused])
            yield from (job_id for job_id in ids if job_id in unprepared)


def _waiting_queues(session: Session) -> list[str]:
    """The queues for which jobs wait, found without reading the jobs."""
    return list(session.execute(_for_which_jobs_wait(tuple(every_queue()))).scalars())


@cache  # an idle worker asks every second, and to build it takes longer than to answer it
def _for_which_jobs_wait(queues: tuple[str, ...]) -> sa.CompoundSelect[tuple[str]]:
    waits = (sa.exists().where(col(Job.queue) == name, is_waiting()) for name in queues)
    return sa.union_all(*(sa.select(sa.literal(name)).where(one) for name, one in zip(queues, waits, strict=True)))


def _unprepared(session: Session, ids: Collection[str], paused: Collection[str]) -> set[str]:
    """Those of the jobs that still wait for their turn and have a picture that no worker has begun with."""
    jobs = (
        select(JobPicture.job_id)
        .join(Job, col(Job.id) == col(JobPicture.job_id))
        .where(col(Job.id).in_(ids), is_waiting(), Job.stage == Stage.PREPROCESS, col(Job.family).not_in(paused))
    )
    return set(session.exec(jobs.where(*_IS_UNTOUCHED).distinct()))


_IS_UNTOUCHED = (JobPicture.state == PictureState.WAITING, col(JobPicture.lease_until).is_(None))


def _untouched(session: Session, job_id: str) -> list[JobPicture]:
    query = select(JobPicture).where(JobPicture.job_id == job_id, *_IS_UNTOUCHED)
    return list(session.exec(query.order_by(col(JobPicture.position)).limit(_AMONG)))
