"""The poll: asks the servers about every submitted run, in parallel, over one connection pool.

One request per server lists its jobs; then at most two follow for each running job. No session is open meanwhile, and
each result is written in its own transaction. A run belongs to the poll that claimed it last, so two polls at once do
nothing twice.
"""

import logging
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlmodel import col, select

from core.errors import BackendFailed, BackendUnreachable, ImprintError
from core.telemetry.logging import job_context
from jobs import keys
from jobs.lifecycle.periodic import each
from jobs.remote import pods, runs, waiting_jobs
from jobs.remote.pod_costs import lock_pods
from jobs.remote.poll_results import LOST, PolledRun, PollOutcome, record_result
from jobs.services import Services
from jobs.stages.stage_runner import clean_up
from storage.database import AWAY
from storage.tables.remote import RemoteRun, RentedPod
from training.backends.ai_toolkit import work
from training.backends.ai_toolkit.answers import RemoteJob
from training.backends.ai_toolkit.server import ToolkitServer

log = logging.getLogger(__name__)

THREADS = 24
_LEAST_TIME_S = 10.0
PREVIEWS_AT_ONCE = 4
MAX_PREVIEW_BYTES = 8_000_000


@dataclass(frozen=True)
class PollSummary:
    """What a poll did."""

    polled: int
    completed: int
    given_up: int


def end_runs(services: Services) -> None:
    """End the runs of final jobs, and fail jobs that still wait in a server's queue when their hold has expired."""
    if not _has_runs(services):
        return
    with services.database.reading() as session:
        overdue = waiting_jobs.overdue(session, services.settings)

    def expire(job_id: str) -> None:
        with job_context(job_id), services.database.writing() as session:
            waiting_jobs.end_overdue(session, job_id)

    each("final runs", overdue, expire)
    with services.database.writing() as session:
        runs.end_runs_of_final_jobs(session)


def poll(services: Services) -> PollSummary:
    """Poll every submitted run once and record the results."""
    if not _has_runs(services):
        return PollSummary(0, 0, 0)
    with services.database.writing() as session:
        taken = runs.claim_submitted(session, services.settings)
    done = Counter(each("poll", _poll_servers(services, taken), partial(_record, services)))
    return PollSummary(done.total(), done[PollOutcome.COMPLETED], done[PollOutcome.GIVEN_UP])


def wake(services: Services) -> None:
    """Launch jobs that wait for a server that has room now."""
    if _has_runs(services):
        with services.database.writing() as session:
            waiting_jobs.wake(session, services.settings)


def _has_runs(services: Services) -> bool:
    with services.database.reading() as session:
        left = select(RemoteRun.job_id).where(col(RemoteRun.cleared_at).is_(None)).limit(1)
        return session.exec(left).first() is not None


def _record(services: Services, polled: PolledRun) -> PollOutcome:
    """Write one result in its own transaction. One that cannot be written counts like a server that did not answer."""
    with job_context(polled.run.job_id):
        try:
            outcome = _write(services, polled)
        except AWAY:
            raise
        except Exception as error:
            log.exception("the result of polling %s cannot be recorded", polled.run.name)
            unusable = BackendFailed(f"the server's answer cannot be recorded: {type(error).__name__}")
            outcome = _write(services, PolledRun(polled.run, error=unusable))
        if outcome is PollOutcome.OVERTAKEN and polled.previews:
            clean_up(services, polled.run.job_id)  # if the job is final, its previews came too late
        return outcome


def _write(services: Services, polled: PolledRun) -> PollOutcome:
    with services.database.writing() as session:
        lock_pods(session)  # a result may share out the cost of a pod
        return record_result(session, polled, services.settings)


def _time_s(services: Services) -> float:
    """How long a poll waits for servers. It ends before the next one begins, even if servers hang."""
    return max(0.8 * services.settings.remote_poll_s, _LEAST_TIME_S)


# ---- polling --------------------------------------------------------------------------------------------------


def _poll_servers(services: Services, taken: Sequence[RemoteRun]) -> Iterator[PolledRun]:
    """The results in the order in which the servers answer. A server that is too slow counts as away."""
    by_server: dict[str | None, list[RemoteRun]] = defaultdict(list)
    for run in taken:
        by_server[run.pod_id].append(run)
    until = time.monotonic() + _time_s(services)
    pool = ThreadPoolExecutor(THREADS, "poll")
    waiting: dict[Future[Any], list[RemoteRun]] = {
        pool.submit(_list_jobs, services, pod_id): theirs for pod_id, theirs in by_server.items()
    }
    while waiting and (left_s := until - time.monotonic()) > 0:
        for future in wait(waiting, left_s, FIRST_COMPLETED).done:
            theirs, answer = waiting.pop(future), future.result()
            if isinstance(answer, PolledRun):
                yield answer
            elif isinstance(answer, ImprintError):
                yield from (PolledRun(run, error=answer) for run in theirs)
            else:
                yield from _submit_polls(services, pool, waiting, theirs, *answer)
    slow = BackendUnreachable("the server did not answer in time")
    # Runs whose turn did not come have missed nothing: the next poll takes them in another order.
    hanging = [theirs for future, theirs in waiting.items() if not future.cancel()]
    yield from (PolledRun(run, error=slow) for theirs in hanging for run in theirs)
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
    except AWAY:
        raise
    except Exception as error:  # one unreadable answer must not keep the other servers from being polled
        log.exception("the jobs of the server on %s cannot be listed", pod_id or pods.FIXED)
        return BackendFailed(f"the server's answer cannot be read: {type(error).__name__}")


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
    except Exception as error:  # noqa: BLE001 - a preview is not worth a poll
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
    except AWAY:
        raise
    except Exception as error:  # noqa: BLE001 - what follows is on the same server
        log.warning("%d ended run(s) are not deleted from their server yet: %s", len(ended) - len(cleared), error)
    return cleared
