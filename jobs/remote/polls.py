"""The poll: asks the servers about every submitted run, in parallel, over one connection pool.

One request per server lists its jobs; then at most two follow for each running job. No session is open meanwhile, and
results are written in batches. A run belongs to the poll that claimed it last, so two polls at once do nothing twice.
"""

import logging
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from sqlmodel import col, select

from core.errors import BackendFailed, BackendUnreachable, ImprintError
from core.logging import job_context
from jobs import keys
from jobs.remote import pods, runs
from jobs.remote.pod_costs import lock_pods
from jobs.remote.poll_results import LOST, PolledRun, PollOutcome, record_result
from jobs.services import Services
from jobs.stages.stage_runner import clean_up
from storage.remote_tables import RemoteRun, RentedPod
from training.backends.ai_toolkit import work
from training.backends.ai_toolkit.answers import RemoteJob
from training.backends.ai_toolkit.server import ToolkitServer

log = logging.getLogger(__name__)

THREADS = 24
BATCH = 50  # results that are written in one transaction
_FLUSH_S = 1.0  # how long the first result of a batch waits for the others
_LEAST_TIME_S = 10.0
PREVIEWS_AT_ONCE = 4
MAX_PREVIEW_BYTES = 8_000_000


@dataclass(frozen=True)
class PollSummary:
    """What a poll did."""

    polled: int
    completed: int
    given_up: int
    cleared: int


def poll(services: Services) -> PollSummary:
    """Poll every submitted run once, record the results, and delete ended runs from their servers."""
    with services.database.reading() as session:
        if session.exec(select(RemoteRun.job_id).where(col(RemoteRun.cleared_at).is_(None)).limit(1)).first() is None:
            return PollSummary(0, 0, 0, 0)
    with services.database.writing() as session:
        runs.end_overdue(session, services.settings)
        runs.end_runs_of_final_jobs(session)
        taken = runs.claim_submitted(session, services.settings)
    done: Counter[PollOutcome] = Counter()
    for batch in _poll_servers(services, taken):
        with services.database.writing() as session:
            lock_pods(session)  # a batch may share out the cost of several pods
            outcomes = [record_result(session, one, services.settings) for one in batch]
        done.update(outcomes)
        for one, outcome in zip(batch, outcomes, strict=True):
            if outcome is PollOutcome.OVERTAKEN and one.previews:
                clean_up(services, one.run.job_id)  # if the job is final, its previews came too late
    cleared = clear(services)
    with services.database.writing() as session:
        runs.wake_waiting(session, services.settings)
    return PollSummary(done.total(), done[PollOutcome.COMPLETED], done[PollOutcome.GIVEN_UP], cleared)


def _time_s(services: Services) -> float:
    """How long a poll waits for servers. It ends before the next one begins, even if servers hang."""
    return max(0.8 * services.settings.remote_poll_s, _LEAST_TIME_S)


# ---- polling --------------------------------------------------------------------------------------------------


def _poll_servers(services: Services, taken: Sequence[RemoteRun]) -> Iterator[list[PolledRun]]:
    """The results in batches, in the order in which the servers answer. A server that is too slow counts as away."""
    by_server: dict[str | None, list[RemoteRun]] = defaultdict(list)
    for run in taken:
        by_server[run.pod_id].append(run)
    flushed = time.monotonic()
    until = flushed + _time_s(services)
    pool = ThreadPoolExecutor(THREADS, "poll")
    waiting: dict[Future[Any], list[RemoteRun]] = {
        pool.submit(_list_jobs, services, pod_id): theirs for pod_id, theirs in by_server.items()
    }
    batch: list[PolledRun] = []
    while waiting and (left_s := until - time.monotonic()) > 0:
        for future in wait(waiting, min(left_s, _FLUSH_S), FIRST_COMPLETED).done:
            theirs, answer = waiting.pop(future), future.result()
            if isinstance(answer, PolledRun):
                batch.append(answer)
            elif isinstance(answer, ImprintError):
                batch += [PolledRun(run, error=answer) for run in theirs]
            else:
                batch += _submit_polls(services, pool, waiting, theirs, *answer)
        if batch and (len(batch) >= BATCH or time.monotonic() > flushed + _FLUSH_S):
            yield batch
            batch, flushed = [], time.monotonic()
    slow = BackendUnreachable("the server did not answer in time")
    # Runs whose turn did not come have missed nothing: the next poll takes them in another order.
    hanging = [theirs for future, theirs in waiting.items() if not future.cancel()]
    yield batch + [PolledRun(run, error=slow) for theirs in hanging for run in theirs]
    pool.shutdown(wait=False)  # requests that still hang end by their own time limit


def _submit_polls(
    services: Services, pool: ThreadPoolExecutor, waiting: dict[Future[Any], list[RemoteRun]], theirs: list[RemoteRun],
    server: ToolkitServer, jobs: dict[str, RemoteJob],
) -> list[PolledRun]:  # fmt: skip
    """Start polling each run that the server lists. Returns the results of those that it does not list."""
    busy = any(job.status == "running" for job in jobs.values())
    known = [run for run in theirs if run.name in jobs]
    random.shuffle(known)
    for run in known:
        waiting[pool.submit(_poll_run, services, server, run, jobs[run.name], busy)] = [run]
    if not busy and any(jobs[run.name].status == "queued" for run in known):
        # A server stops its queue when it is empty, even if it was started a moment ago.
        pool.submit(server.start_queue).add_done_callback(_log_failure)
    return [PolledRun(run) for run in theirs if run.name not in jobs]


def _list_jobs(services: Services, pod_id: str | None) -> tuple[ToolkitServer, dict[str, RemoteJob]] | ImprintError:
    try:
        with services.database.reading() as session:
            pod = session.get(RentedPod, pod_id) if pod_id else None
        if pod_id is not None and pods.is_lost(pod):
            return BackendUnreachable("the rented machine is gone", LOST)
        server = pods.server_of(services, pod_id)
        return server, server.jobs()
    except ImprintError as error:
        return error


def _poll_run(services: Services, server: ToolkitServer, run: RemoteRun, job: RemoteJob, busy: bool) -> PolledRun:
    with job_context(run.job_id):
        return _poll_run_now(services, server, run, job, busy)


def _poll_run_now(services: Services, server: ToolkitServer, run: RemoteRun, job: RemoteJob, busy: bool) -> PolledRun:
    polled = PolledRun(run, busy=busy)
    try:
        polled.result = work.poll(server, job, run.log_offset, run.step)
    except ImprintError as error:
        polled.error = error
        return polled
    except Exception as error:  # one unreadable answer must not keep the other runs from being polled
        log.exception("polling %s failed", run.name)
        polled.error = BackendFailed(f"the server's answer cannot be read: {type(error).__name__}")
        return polled
    try:
        for sample in polled.result.samples[run.previews : run.previews + PREVIEWS_AT_ONCE]:
            suffix = sample.path.rsplit(".", 1)[-1].lower()
            if suffix not in ("jpg", "jpeg", "png", "webp"):
                suffix = "bin"
            key = keys.preview(run.job_id, run.attempt, sample.step, sample.prompt, suffix)
            services.store.put(key, server.sample_bytes(sample.path, MAX_PREVIEW_BYTES))
            polled.previews.append({"step": sample.step, "prompt": sample.prompt, "key": key})
    except ImprintError as error:
        log.warning("a preview of %s is left for the next poll: %s", run.name, error)
    return polled


def _log_failure(future: "Future[None]") -> None:
    if not future.cancelled() and (error := future.exception()):
        log.warning("a queue could not be started: %s", error)


# ---- clearing -------------------------------------------------------------------------------------------------


def clear(services: Services, job_id: str | None = None) -> int:
    """Delete ended runs (of one job, or all) from their servers; what fails is repeated by the next poll.

    Returns how many were deleted.
    """
    with services.database.reading() as session:
        ended = runs.uncleared(session, job_id)
        lost = {run.pod_id for run in ended if run.pod_id and pods.is_lost(session.get(RentedPod, run.pod_id))}
    if not ended:
        return 0
    by_server: dict[str | None, list[RemoteRun]] = defaultdict(list)
    for run in ended:
        by_server[run.pod_id].append(run)
    pool = ThreadPoolExecutor(min(THREADS, len(by_server)), "clear")
    time_s = _time_s(services)
    until = time.monotonic() + time_s / 2
    parts = [
        pool.submit(_clear_on, services, pod_id, theirs, until, gone=pod_id in lost)
        for pod_id, theirs in by_server.items()
    ]
    cleared = [run for part in wait(parts, time_s).done for run in part.result()]
    pool.shutdown(wait=False, cancel_futures=True)
    with services.database.writing() as session:
        for run in cleared:
            runs.record_cleared(session, run, services.settings, gone=run.pod_id in lost)
    return len(cleared)


def clear_job(services: Services, job_id: str) -> None:
    """The same for a final job, at once: a cancelled training on a remote server costs money."""
    with services.database.reading() as session:
        if runs.newest(session, job_id) is None:
            return
    with services.database.writing() as session:
        runs.end_runs_of_final_jobs(session, job_id)
    clear(services, job_id)


def _clear_on(
    services: Services, pod_id: str | None, ended: Sequence[RemoteRun], until: float, *, gone: bool
) -> list[RemoteRun]:
    """Delete ended runs from one server until one fails: the others would fail too. Returns those that are deleted.

    After `until` (of time.monotonic) the rest is left for the next poll.
    """
    if gone:
        return list(ended)
    cleared: list[RemoteRun] = []
    try:
        server = pods.server_of(services, pod_id)
        for run in ended:
            if time.monotonic() > until:
                break
            work.clear(server, run.name)
            cleared.append(run)
    except ImprintError as error:
        log.warning("%d ended run(s) are not deleted from their server yet: %s", len(ended) - len(cleared), error)
    return cleared
