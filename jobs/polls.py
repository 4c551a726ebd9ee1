"""The poll: every submitted training looked at, side by side, over one pool of connections.

One request per server lists its jobs; then at most two for each job that runs. No session is open meanwhile; what was
seen is written a batch at a time. A run belongs to the poll that took it last, so two polls at once do nothing twice.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import islice

from sqlmodel import col, select

from core.errors import BackendFailed, BackendUnreachable, ImprintError
from jobs import keys, pods, runs
from jobs.pod_costs import lock_pods
from jobs.shell import clean_up
from jobs.sightings import LOST, Seen, record
from jobs.wiring import House
from storage.tables import RemoteRun, RentedPod
from training.backends.ai_toolkit import work
from training.backends.ai_toolkit.answers import RemoteJob
from training.backends.ai_toolkit.server import Server

log = logging.getLogger(__name__)

THREADS = 24
BATCH = 50  # runs that are written in one transaction
PREVIEWS_AT_ONCE = 4
MAX_PREVIEW_BYTES = 8_000_000


@dataclass(frozen=True)
class Polled:
    """What a poll did."""

    looked_at: int
    completed: int
    given_up: int
    cleared: int


def poll(house: House) -> Polled:
    """Look at every submitted run once, record what became of it, and clear from the servers what has ended."""
    with house.database.reading() as session:
        if session.exec(select(RemoteRun.job_id).where(col(RemoteRun.cleared_at).is_(None)).limit(1)).first() is None:
            return Polled(0, 0, 0, 0)
    with house.database.writing() as session:
        runs.end_overdue(session, house.settings)
        runs.end_those_of_final_jobs(session)
        taken = runs.take(session, house.settings)
    done: Counter[str] = Counter()
    with ThreadPoolExecutor(THREADS, "poll") as pool:
        seen = _look(house, pool, taken)
        while batch := list(islice(seen, BATCH)):
            with house.database.writing() as session:
                lock_pods(session)  # a batch accounts for several
                outcomes = [record(session, one, house.settings) for one in batch]
            done.update(outcomes)
            for one, outcome in zip(batch, outcomes, strict=True):
                if outcome == "overtaken" and one.previews:
                    clean_up(house, one.run.job_id)  # if the job is final, its samples came after its end
    return Polled(len(taken), done["completed"], done["given up"], clear(house))


# ---- looking --------------------------------------------------------------------------------------------------


def _look(house: House, pool: ThreadPoolExecutor, taken: Sequence[RemoteRun]) -> Iterator[Seen]:
    """Each run as it is seen, in the order in which the servers answer."""
    by_server: dict[str | None, list[RemoteRun]] = defaultdict(list)
    for run in taken:
        by_server[run.pod_id].append(run)
    lists = {pool.submit(_list, house, pod_id): theirs for pod_id, theirs in by_server.items()}
    looks: list[Future[Seen]] = []
    for listed in as_completed(lists):
        theirs, answer = lists[listed], listed.result()
        if isinstance(answer, ImprintError):
            yield from (Seen(run, error=answer) for run in theirs)
            continue
        server, jobs = answer
        busy = any(job.status == "running" for job in jobs.values())
        for run in theirs:
            if run.name in jobs:
                looks.append(pool.submit(_look_at, house, server, run, jobs[run.name], busy))
            else:
                yield Seen(run)
        if not busy and any(jobs[run.name].status == "queued" for run in theirs if run.name in jobs):
            # A server stops its queue whenever it has drained, also one that was started a moment ago.
            pool.submit(server.start_queue).add_done_callback(_log_failure)
    for look in as_completed(looks):
        yield look.result()


def _list(house: House, pod_id: str | None) -> tuple[Server, dict[str, RemoteJob]] | ImprintError:
    try:
        with house.database.reading() as session:
            pod = session.get(RentedPod, pod_id) if pod_id else None
        if pod_id is not None and pods.is_lost(pod):
            return BackendUnreachable("the rented machine is gone", LOST)
        server = pods.server_of(house, pod_id)
        return server, server.jobs()
    except ImprintError as error:
        return error


def _look_at(house: House, server: Server, run: RemoteRun, job: RemoteJob, busy: bool) -> Seen:
    seen = Seen(run, busy=busy)
    try:
        seen.sighting = work.look(server, job, run.log_offset, run.step)
    except ImprintError as error:
        seen.error = error
        return seen
    except Exception as error:  # one run that cannot be read must not keep the others from being looked at
        log.exception("looking at %s", run.name)
        seen.error = BackendFailed(f"what the server tells cannot be read: {type(error).__name__}")
        return seen
    try:
        for sample in seen.sighting.samples[run.previews : run.previews + PREVIEWS_AT_ONCE]:
            suffix = sample.path.rsplit(".", 1)[-1].lower()
            if suffix not in ("jpg", "jpeg", "png", "webp"):
                suffix = "bin"
            key = keys.preview(run.job_id, run.attempt, sample.step, sample.prompt, suffix)
            house.store.put(key, server.sample_bytes(sample.path, MAX_PREVIEW_BYTES))
            seen.previews.append({"step": sample.step, "prompt": sample.prompt, "key": key})
    except ImprintError as error:
        log.warning("a sample of %s is left for the next poll: %s", run.name, error)
    return seen


def _log_failure(future: "Future[None]") -> None:
    if error := future.exception():
        log.warning("a queue could not be started: %s", error)


# ---- clearing -------------------------------------------------------------------------------------------------


def clear(house: House, job_id: str | None = None) -> int:
    """Leave nothing on the servers of runs that have ended (of one job, or of all); what fails, the next poll repeats.

    Gives how many were cleared.
    """
    with house.database.reading() as session:
        ended = runs.uncleared(session, job_id)
        lost = {run.pod_id for run in ended if run.pod_id and pods.is_lost(session.get(RentedPod, run.pod_id))}
    if not ended:
        return 0
    by_server: dict[str | None, list[RemoteRun]] = defaultdict(list)
    for run in ended:
        by_server[run.pod_id].append(run)
    with ThreadPoolExecutor(min(THREADS, len(by_server)), "clear") as pool:
        parts = pool.map(lambda part: _clear_on(house, part[0], part[1], gone=part[0] in lost), by_server.items())
    cleared = [run for part in parts for run in part]
    with house.database.writing() as session:
        for run in cleared:
            runs.cleared(session, run, house.settings, gone=run.pod_id in lost)
    return len(cleared)


def clear_job(house: House, job_id: str) -> None:
    """The same for a job that is final, at once: a remote training that was cancelled costs money."""
    with house.database.reading() as session:
        if runs.newest(session, job_id) is None:
            return
    with house.database.writing() as session:
        runs.end_those_of_final_jobs(session, job_id)
    clear(house, job_id)


def _clear_on(house: House, pod_id: str | None, ended: Sequence[RemoteRun], *, gone: bool) -> list[RemoteRun]:
    """The runs of which one server has nothing any more; the first that fails ends it: the others would, too."""
    if gone:
        return list(ended)
    cleared: list[RemoteRun] = []
    try:
        server = pods.server_of(house, pod_id)
        for run in ended:
            work.clear(server, run.name)
            cleared.append(run)
    except ImprintError as error:
        log.warning("%d run(s) are still to be cleared from a server: %s", len(ended) - len(cleared), error)
    return cleared
