"""A worker draws one drawing on its device: under a lease, picture by picture, so that another worker can continue.

One drawing at a time in a process. If trainings share the device, they wait meanwhile, and get at least as much time
before the next drawing.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from core.errors import (
    Cancelled,
    HandOver,
    ImprintError,
    LeaseLost,
    LoraInvalid,
    NotFound,
    OutOfMemory,
    Stop,
    TrainingTimeout,
)
from core.telemetry import metrics
from core.telemetry.logging import stage_context
from jobs import keys
from jobs.drawings import drawing_transitions as transitions
from jobs.drawings.drawing_request import size_of
from jobs.drawings.drawing_transitions import DrawingLease
from jobs.lifecycle.lease_keeper import HeldLease
from jobs.services import Services
from jobs.stages.control import leaving
from jobs.stages.stage_runner import NothingToDo, work_dir, worker_name
from jobs.turns import RetryLater
from storage.database import AWAY
from storage.tables.drawings import DrawingRow, DrawingStatus, DrawnFile
from storage.tables.jobs import Job
from training.spec import base_model_location

log = logging.getLogger(__name__)

_CHECK_EVERY_S, _REPORT_EVERY_S = 0.5, 1.0
_AGAIN_S = 2.0  # after this time a drawing asks again for the turn of a busy worker

_turn = threading.Lock()
_rest_until = 0.0  # by the monotonic clock: until then, trainings have the device


def draw(services: Services, drawing_id: str) -> None:
    """Draw what is not drawn yet, and settle. A second run at the same time does nothing.

    Raises RetryLater if this worker draws another, NothingToDo, or the error that failed the drawing.
    """
    global _rest_until
    if (rest_s := _rest_until - time.monotonic()) > 0:
        raise RetryLater("trainings have the device for a while", min(rest_s, 60.0))
    if not _turn.acquire(blocking=False):
        raise RetryLater("this worker draws another picture", _AGAIN_S)
    try:
        begun = time.monotonic()
        if _draw_claimed(services, drawing_id):
            _rest_until = time.monotonic() + (time.monotonic() - begun)
    finally:
        _turn.release()


def _draw_claimed(services: Services, drawing_id: str) -> bool:
    """Returns whether trainings waited for the drawing."""
    import_module("training.backends.drawing")  # torch takes seconds: before the lease begins
    settings = services.settings
    with services.database.writing() as session:
        claimed = transitions.claim(session, drawing_id, worker_name(), settings.lease_s)
        if claimed is None:
            raise NothingToDo(f"there is nothing to draw for {drawing_id}")
        lease, row = claimed
        job = session.get_one(Job, row.job_id)
    # A download of a base model may take longer than a drawing may, so the lease has the time of both.
    limit_s = settings.drawing_timeout_s + settings.stage_timeout_s
    with _holding(services, lease, limit_s) as held, work_dir(services, drawing_id) as folder:
        lora = folder / f"{job.id}.safetensors"
        try:
            services.store.get_file(str(job.lora_key), lora)
        except NotFound:
            raise LoraInvalid(f"the LoRA file of {job.id} is not in the object store any more") from None
        waited = _draw(services, lease, row, held, lora)
        with services.database.writing() as session:
            if not transitions.finish(session, lease, settings):
                raise NothingToDo(f"{drawing_id} was ended while it was drawn")
    return waited


def _draw(services: Services, lease: DrawingLease, row: DrawingRow, held: HeldLease, lora: Path) -> bool:
    from training.backends.drawing import DrawingOrder, PictureOrder, draw_pictures  # torch: only on workers that draw

    drawn = {picture.number: picture for picture in row.pictures}
    order = DrawingOrder(
        base_model=base_model_location(row.base_model, services.settings.base_models),
        family=row.family,
        lora=lora,
        prompt=row.prompt,
        pictures=[
            PictureOrder(number, seed, row.strength if is_on else 0.0)
            for number, (seed, is_on) in enumerate(row.to_draw)
            if number not in drawn
        ],
        steps=row.steps,
        guidance=row.guidance,
        size=size_of(row),
        device=services.settings.device,
    )
    control = DrawingControl(services, lease, held, step=len(drawn) * row.steps)

    def save(number: int, png: bytes) -> None:
        control.check()
        services.store.put(f"{keys.drawing(row.id)}{number:03d}.png", png)
        seed, is_on = row.to_draw[number]
        sha256 = hashlib.sha256(png).hexdigest()
        drawn[number] = DrawnFile(number=number, seed=seed, with_lora=is_on, sha256=sha256, bytes=len(png))
        control.record([drawn[one] for one in sorted(drawn)])

    return draw_pictures(order, control.check, control.on_step, save)


class DrawingControl:
    """The link between a running drawing and its row: it writes progress, and finds out when to stop."""

    def __init__(self, services: Services, lease: DrawingLease, held: HeldLease, step: int) -> None:
        self._services, self._lease, self._held = services, lease, held
        self._deadline = time.monotonic() + services.settings.drawing_timeout_s
        self._step = step
        self._next_check = self._next_report = 0.0

    def check(self) -> None:
        """Raise the error that ends the drawing, if there is one. Queries its row at most twice a second."""
        if leaving.is_set():
            raise HandOver("this worker was asked to stop")
        now = time.monotonic()
        if now > self._deadline:
            limit_s = self._services.settings.drawing_timeout_s
            raise TrainingTimeout(f"the drawing took longer than {limit_s:.0f} s")
        if self._held.lost.is_set():
            self._raise_why()
        if now < self._next_check:
            return
        self._next_check = now + _CHECK_EVERY_S
        with suppress(*AWAY), self._services.database.reading() as session:
            if not self._lease.is_held(session):
                self._raise_why()

    def on_step(self) -> None:
        """Count a step, and record it at most once a second."""
        self._step += 1
        self.check()
        now = time.monotonic()
        if now >= self._next_report:
            self._next_report = now + _REPORT_EVERY_S
            with suppress(*AWAY):
                self._write(step=self._step)

    def record(self, pictures: list[DrawnFile]) -> None:
        """Record the pictures that are in the store. Raises if the lease is lost."""
        self._write(step=self._step, pictures=pictures, attempt=1)  # only attempts without progress count

    def _write(self, **values: object) -> None:
        try:
            with self._services.database.writing() as session:
                self._lease.write(session, **values)
        except LeaseLost:
            self._raise_why()

    def _raise_why(self) -> None:
        with self._services.database.reading() as session:
            row = session.get(DrawingRow, self._lease.job_id)
        if row is not None and row.status == DrawingStatus.CANCELLED:
            raise Cancelled("the owner cancelled")
        raise LeaseLost(f"{self._lease.job_id}: another worker draws it, or it has ended")


@contextmanager
def _holding(services: Services, lease: DrawingLease, limit_s: float) -> Iterator[HeldLease]:
    """Keep the lease while the block runs; turn an error into the right transition of the drawing."""

    def hand_over(_reason: str) -> None:
        with suppress(LeaseLost), services.database.writing() as session:
            transitions.hand_over(session, lease, services.settings)

    held = None
    with stage_context(lease.job_id, lease.stage), _timed(lease):
        try:
            with services.lease_keeper.keeping(lease, limit_s, hand_over) as held:
                yield held
        except HandOver as stop:
            if held is not None and not held.lost.is_set():
                hand_over(str(stop))
            raise NothingToDo(str(stop)) from stop
        except Stop as stop:
            _drop_orphans(services, lease.job_id)
            raise NothingToDo(str(stop)) from stop
        except (NothingToDo, *AWAY):  # without a database the lease expires, and the sweep launches the drawing again
            raise
        except ImprintError as error:
            _retry_or_fail(services, lease, error)
        except MemoryError as error:
            _retry_or_fail(services, lease, OutOfMemory("the worker ran out of memory while it drew"), error)
        except Exception as error:
            log.exception("the drawing %s ended with an unexpected error", lease.job_id)
            failure = ImprintError(f"an unexpected error while drawing: {type(error).__name__}")
            _retry_or_fail(services, lease, failure, error)


@contextmanager
def _timed(lease: DrawingLease) -> Iterator[None]:
    """Record how long the worker drew and how it ended."""
    begun, outcome = time.perf_counter(), "failed"
    try:
        yield
        outcome = "done"
    except NothingToDo:
        outcome = "left"  # handed over, cancelled, claimed by another worker, or launched again
        raise
    finally:
        metrics.STAGE_SECONDS.add(time.perf_counter() - begun, lease.stage, outcome)


def _retry_or_fail(
    services: Services, lease: DrawingLease, error: ImprintError, cause: BaseException | None = None
) -> NoReturn:
    """Launch the drawing again if another attempt may help and one is left; else fail it and raise its error."""
    again = error.retryable and lease.attempt < services.settings.max_attempts
    log.warning("attempt %d at the drawing %s failed: %s", lease.attempt, lease.job_id, error)
    try:
        with services.database.writing() as session:
            if again:
                transitions.postpone(session, lease, error, services.settings)
            failed = not again and transitions.fail_leased(session, lease, error)
    except LeaseLost:
        failed = False
    if not failed:
        raise NothingToDo("the drawing continues without this attempt") from (cause or error)
    raise error from cause


def _drop_orphans(services: Services, drawing_id: str) -> None:
    """Delete what was stored of a drawing whose row was deleted meanwhile."""
    with services.database.reading() as session:
        row = session.get(DrawingRow, drawing_id)
    if row is None:
        services.store.delete_prefix(keys.drawing(drawing_id))
