"""The result of polling a run, and what follows: it continues, it is completed, or it is given up."""

import logging
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any

from sqlmodel import Session

from core.clock import utcnow
from core.errors import BackendFailed, BackendUnreachable, ImprintError, OutOfMemory, TrainingTimeout
from core.settings import Settings
from core.telemetry.logging import job_context
from jobs.lifecycle import launches
from jobs.remote import runs
from storage.tables.remote import RemoteRun
from training.backends.ai_toolkit import server_errors
from training.backends.ai_toolkit.work import PollResult

log = logging.getLogger(__name__)

LOST = {"lost": True}  # details of an error after which the server need not be asked again


class PollOutcome(StrEnum):
    """What a poll led to.

    OUT_OF_SIGHT: the server is away, and a worker looks for the training when it is back. OVERTAKEN: another process
    changed the run first, and nothing was written.
    """

    RECORDED = "recorded"
    MISSED = "missed"
    COMPLETED = "completed"
    GIVEN_UP = "given up"
    OUT_OF_SIGHT = "out of sight"
    OVERTAKEN = "overtaken"


@dataclass
class PolledRun:
    """A run and what a poll found. No result: the server did not answer (`error`), or does not know the run."""

    run: RemoteRun
    result: PollResult | None = None
    error: ImprintError | None = None
    busy: bool = True  # whether anything runs on its server
    previews: list[dict[str, Any]] = field(default_factory=list)


def record_result(session: Session, polled: PolledRun, settings: Settings) -> PollOutcome:
    """Write the result of a poll."""
    if polled.result is None:
        return _record_missed(session, polled, settings)
    if polled.result.status == "completed":
        return _record_completed(session, polled, polled.result, settings)
    verdict = _verdict(session, polled.run, polled.result, polled.busy, settings)
    if verdict is not None:
        error, again = verdict
        info = f"{polled.result.status}: {polled.result.info}"
        given_up = runs.give_up(session, polled.run, error, settings, again=again, info=info)
        return PollOutcome.GIVEN_UP if given_up else PollOutcome.OVERTAKEN
    return _record_progress(session, polled, polled.result)


def _record_missed(session: Session, polled: PolledRun, settings: Settings) -> PollOutcome:
    """The server does not know the run, is gone, or did not answer."""
    run, error = polled.run, polled.error
    if error is None:
        error = BackendUnreachable("the server no longer knows the training")
    elif error.details != LOST:
        if run.missed + 1 < settings.remote_lost_polls:
            with job_context(run.job_id):
                log.warning("%s could not be polled, %d times in a row: %s", run.name, run.missed + 1, error)
            return PollOutcome.MISSED if runs.record(session, run, missed=run.missed + 1) else PollOutcome.OVERTAKEN
        if isinstance(error, BackendUnreachable):
            error = BackendUnreachable(f"the server did not answer {settings.remote_lost_polls} times in a row")
            # The trainer is another process than the server's web page, and may well continue.
            is_left = runs.look_again(session, run, error, settings)
            return PollOutcome.OUT_OF_SIGHT if is_left else PollOutcome.OVERTAKEN
        # It answers, and will answer no better.
    return PollOutcome.GIVEN_UP if runs.give_up(session, run, error, settings) else PollOutcome.OVERTAKEN


def _record_completed(session: Session, polled: PolledRun, result: PollResult, settings: Settings) -> PollOutcome:
    run = polled.run
    previews = run.previews + len(polled.previews)
    progress = runs.RunProgress(result.step, result.loss, seconds_left=0.0)
    values = {"status": result.status, "info": "", "step": result.step, "previews": previews}
    if not runs.record_completed(session, run, settings, progress, **values):
        return PollOutcome.OVERTAKEN
    _record_previews(session, polled)
    return PollOutcome.COMPLETED


def _record_progress(session: Session, polled: PolledRun, result: PollResult) -> PollOutcome:
    run, now = polled.run, utcnow()
    info = _public_info(result.info)
    progress = None
    if result.status == "running" and result.step != run.step:
        progress = runs.RunProgress(result.step, result.loss, result.seconds_left, result.seconds_per_step)
    written = runs.record(
        session,
        run,
        progress,
        status=result.status,
        info=info,
        step=result.step,
        log_offset=result.log_offset,
        previews=run.previews + len(polled.previews),
        missed=0,
        moved_at=now if _has_moved(run, result, polled.busy) else run.moved_at,
        started_at=run.started_at or (now if result.status == "running" else None),
    )
    if not written:
        return PollOutcome.OVERTAKEN
    _record_previews(session, polled)
    if (result.status, info) != (run.status, run.info):
        launches.record_event(session, run.job_id, "remote", status=info or result.status, attempt=run.attempt)
    return PollOutcome.RECORDED


def _record_previews(session: Session, polled: PolledRun) -> None:
    for preview in polled.previews:
        launches.record_event(session, polled.run.job_id, "preview", **preview)


def _verdict(
    session: Session, run: RemoteRun, result: PollResult, busy: bool, settings: Settings
) -> tuple[ImprintError, bool] | None:
    """Why a run is given up, and whether another attempt may help; None if it continues."""
    now = utcnow()
    if result.status == "failed":
        error = server_errors.error_of(result.info)
        if isinstance(error, OutOfMemory):
            return error, runs.may_fit_again(session, run, error)
        return error, type(error) is BackendFailed
    if result.status == "stopped":
        return BackendFailed("the training was stopped on the server"), True
    if run.started_at and now - run.started_at > timedelta(seconds=settings.training_timeout_s):
        return TrainingTimeout(f"the training took longer than {settings.training_timeout_s:.0f} s"), False
    if now - run.moved_at > timedelta(seconds=settings.remote_stall_s) and not _has_moved(run, result, busy):
        return BackendFailed(f"the training made no progress for {settings.remote_stall_s:.0f} s"), True
    return None


def _has_moved(run: RemoteRun, result: PollResult, busy: bool) -> bool:
    """Whether a run made progress: a step or a line in its log; in the queue, that its server works on another run."""
    if result.status == "queued":
        return busy
    return result.step != run.step or result.grew or run.started_at is None


def _public_info(info: str) -> str:
    """The server's status text, if it is a plain phrase without names or numbers; else empty."""
    words = info.split(" - ")[0].strip(" .")
    return words if len(words) <= 60 and words.replace(" ", "").isalpha() else ""
