"""What a poll saw of a run, and what follows from it: it goes on, it is done, or it is given up."""

import logging
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlmodel import Session

from core.clock import utcnow
from core.errors import BackendFailed, BackendUnreachable, ImprintError, OutOfMemory, TrainingTimeout
from core.logging import job_context
from core.settings import Settings
from jobs import transitions
from jobs.remote import runs
from storage.tables import RemoteRun
from training.backends.ai_toolkit.work import PollResult

log = logging.getLogger(__name__)

LOST = {"lost": True}  # details of an error after which nobody needs to be asked again


@dataclass
class Seen:
    """One run as a poll found it. No sighting: nobody answered (`error`), or the server does not know it."""

    run: RemoteRun
    sighting: PollResult | None = None
    error: ImprintError | None = None
    busy: bool = True  # whether anything runs on its server
    previews: list[dict[str, Any]] = field(default_factory=list)


def record(session: Session, seen: Seen, settings: Settings) -> str:
    """Write what became of a run; in a word: recorded, missed, completed, given up, or overtaken by somebody else."""
    if seen.sighting is None:
        return _unseen(session, seen, settings)
    if seen.sighting.status == "completed":
        return _completed(session, seen, seen.sighting, settings)
    verdict = _verdict(seen.run, seen.sighting, seen.busy, utcnow(), settings)
    if verdict is not None:
        error, again = verdict
        info = f"{seen.sighting.status}: {seen.sighting.info}"
        given_up = runs.give_up(session, seen.run, error, settings, again=again, info=info)
        return "given up" if given_up else "overtaken"
    return _goes_on(session, seen, seen.sighting)


def _unseen(session: Session, seen: Seen, settings: Settings) -> str:
    """A server that does not know the run, that is gone, or that failed to answer once more."""
    run, error = seen.run, seen.error
    if error is None:
        error = BackendUnreachable("the server does not know the training any more")
    elif error.details != LOST:
        if run.missed + 1 < settings.remote_lost_polls:
            with job_context(run.job_id):
                log.warning("%s was not seen, %d times in a row: %s", run.name, run.missed + 1, error)
            return "missed" if runs.record(session, run, missed=run.missed + 1) else "overtaken"
        error = BackendUnreachable(f"the server did not answer {settings.remote_lost_polls} times in a row")
    return "given up" if runs.give_up(session, run, error, settings) else "overtaken"


def _completed(session: Session, seen: Seen, sighting: PollResult, settings: Settings) -> str:
    run = seen.run
    previews = run.previews + len(seen.previews)
    progress = {"step": sighting.step, "loss": sighting.loss, "seconds_left": 0.0}
    values = {"status": sighting.status, "info": "", "step": sighting.step, "previews": previews}
    if not runs.completed(session, run, settings, progress, **values):
        return "overtaken"
    _tell_previews(session, seen)
    return "completed"


def _goes_on(session: Session, seen: Seen, sighting: PollResult) -> str:
    run, now = seen.run, utcnow()
    info = _plain(sighting.info)
    progress = None
    if sighting.status == "running" and sighting.step != run.step:
        names = ("step", "loss", "seconds_left", "seconds_per_step")
        progress = {name: getattr(sighting, name) for name in names}
    written = runs.record(
        session,
        run,
        progress,
        status=sighting.status,
        info=info,
        step=sighting.step,
        log_offset=sighting.log_offset,
        previews=run.previews + len(seen.previews),
        missed=0,
        moved_at=now if _has_moved(run, sighting, seen.busy) else run.moved_at,
        started_at=run.started_at or (now if sighting.status == "running" else None),
    )
    if not written:
        return "overtaken"
    _tell_previews(session, seen)
    if (sighting.status, info) != (run.status, run.info):
        transitions.record_event(session, run.job_id, "remote", status=info or sighting.status, attempt=run.attempt)
    return "recorded"


def _tell_previews(session: Session, seen: Seen) -> None:
    for preview in seen.previews:
        transitions.record_event(session, seen.run.job_id, "preview", **preview)


def _verdict(
    run: RemoteRun, sighting: PollResult, busy: bool, now: datetime, settings: Settings
) -> tuple[ImprintError, bool] | None:
    """Why a run that was seen is to be given up, and whether another one may help; None for one that goes on."""
    if sighting.status == "failed":
        if "out of memory" in sighting.info.lower():
            return OutOfMemory("the server's GPU has too little memory for this training"), False
        return BackendFailed("the training ended with an error on the server"), True
    if sighting.status == "stopped":
        return BackendFailed("the training was stopped on the server"), True
    if run.started_at and now - run.started_at > timedelta(seconds=settings.training_timeout_s):
        return TrainingTimeout(f"training took longer than {settings.training_timeout_s:.0f} s"), False
    if now - run.moved_at > timedelta(seconds=settings.remote_stall_s) and not _has_moved(run, sighting, busy):
        return BackendFailed(f"the training made no progress for {settings.remote_stall_s:.0f} s"), True
    return None


def _has_moved(run: RemoteRun, sighting: PollResult, busy: bool) -> bool:
    """A step or a line in the log; for one in the queue, that the server works on another."""
    if sighting.status == "queued":
        return busy
    return sighting.step != run.step or sighting.grew or run.started_at is None


def _plain(info: str) -> str:
    """The server's words for what it does, if they are of the kind that it has for every job: no names, no numbers."""
    words = info.split(" - ")[0].strip(" .")
    return words if len(words) <= 60 and words.replace(" ", "").isalpha() else ""
