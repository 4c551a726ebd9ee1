"""Keeps one base model loaded in a worker, shared by all trainings that use it, because loading takes seconds.

A worker may also draw or write captions on the same device. That and the trainings must not run out of memory together,
so a drawing has the whole device: it waits until no training encodes, loads or decodes (`device_use`), then trainings
stop between two steps, and their denoiser goes to the host's memory until the drawing ends (`whole_device`).
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from core.errors import ImprintError, Stop
from core.telemetry import metrics
from training.engine.engine import Engine
from training.engine.faults import free_memory, is_out_of_memory
from training.families.family import FamilyCode, Where

_Key = tuple[str, Where, str]

# A training on another base waits for those on this one. After this time, new trainings queue behind it.
PATIENCE_S = 60.0


@dataclass
class _Resident:
    key: _Key
    engine: Engine
    users: int = 0
    is_spoilt: bool = False  # a training on it failed, perhaps because of it: do not share it again


_changed = threading.Condition()
_resident: _Resident | None = None
_queue: list[tuple[_Key, float]] = []  # waiting trainings, and since when
_uses = 0  # threads of trainings that use the device outside the engine's steps
_is_whole = False  # whether a drawing or a captioner has the device, or waits for it


@contextmanager
def shared_engine(family: FamilyCode, where: Where, fingerprint: str, check: Callable[[], None]) -> Iterator[Engine]:
    """The engine on the base model in `where` for one training: the loaded one, if it is the same, or a new one.

    Several trainings may share it. A training on another base model waits until nothing uses this one, because two
    would not fit into memory. It stays loaded when the block ends, except after an unknown error, which the base model
    may have caused. `check` is called while waiting and may raise. Raises what `family.load` raises.
    """
    mine = _acquire((family.name, where, fingerprint), family, where, check)
    try:
        yield mine.engine
    except (Stop, ImprintError):
        raise
    except BaseException as error:
        mine.is_spoilt = not is_out_of_memory(error)
        raise
    finally:
        mine.is_spoilt = mine.is_spoilt or mine.engine.failure is not None
        with _changed:
            mine.users -= 1
            if mine.users == 0:
                base = mine.engine.base
                if base.is_gradient_checkpointing:
                    base.checkpoint_gradients(False)  # the next training may have enough memory
                if mine.is_spoilt and _resident is mine:
                    _release()
            _changed.notify_all()


def _acquire(key: _Key, family: FamilyCode, where: Where, check: Callable[[], None]) -> _Resident:
    """Wait in the queue; then load the base model, unless it is already loaded."""
    global _resident
    ticket = (key, time.monotonic())
    with _changed:
        _queue.append(ticket)
    try:
        while True:
            with _changed:
                if _is_my_turn(ticket):
                    if _resident is None or _resident.key != key or _resident.is_spoilt:
                        _release()  # before loading the next, so that two never share the memory
                        _resident = _Resident(key, Engine(family, family.load(where), key[2]))
                        metrics.BASE_MODELS.add(1, family.name, "loaded")
                    else:
                        metrics.BASE_MODELS.add(1, family.name, "resident")
                    _resident.users += 1
                    return _resident
                _changed.wait(0.5)
            check()
    finally:
        with _changed:
            _queue.remove(ticket)
            _changed.notify_all()


def _is_my_turn(ticket: tuple[_Key, float]) -> bool:
    key, since = ticket
    if _is_whole:
        return False
    if _resident is None or _resident.users == 0:
        return _queue[0] == ticket
    if _resident.key != key or _resident.is_spoilt:
        return False
    return all(other == key or since < at + PATIENCE_S for other, at in _queue)


def _release() -> None:
    """Free the memory of the loaded base model, which nothing uses."""
    global _resident
    if _resident is not None:
        engine, _resident = _resident.engine, None
        engine.close()
        device, has_failed = engine.base.device, engine.failure is not None
        del engine
        if not has_failed:
            free_memory(device)


# ---- the device, shared with drawings ---------------------------------------------------------------------------


@contextmanager
def device_use(check: Callable[[], None]) -> Iterator[None]:
    """Inside, a training uses the device outside the engine's steps: it encodes, loads the denoiser, or decodes.

    Waits while a drawing has the device. `check` is called while waiting and may raise.
    """
    global _uses
    while not _begin_use():
        check()
    try:
        yield
    finally:
        with _changed:
            _uses -= 1
            _changed.notify_all()


def _begin_use() -> bool:
    global _uses
    with _changed:
        if _is_whole:
            _changed.wait(0.5)
        if not _is_whole:
            _uses += 1
            return True
    return False


@contextmanager
def whole_device(check: Callable[[], None]) -> Iterator[bool]:
    """Inside, the device is the caller's alone. Yields whether trainings wait for its end.

    One caller at a time: others wait. `check` is called while waiting and may raise. Raises HandOver if the denoiser of
    the trainings cannot be moved back.
    """
    global _is_whole
    while not _begin_whole():
        check()
    try:
        while not _is_unused():
            check()
        mine = _resident
        if mine is None or mine.engine.failure is not None:
            yield False
        else:
            with mine.engine.parked():
                free_memory(mine.engine.base.device)
                yield mine.users > 0
    finally:
        with _changed:
            _is_whole = False
            _changed.notify_all()


def _begin_whole() -> bool:
    global _is_whole
    with _changed:
        if _is_whole:
            _changed.wait(0.5)
        if not _is_whole:
            _is_whole = True
            return True
    return False


def _is_unused() -> bool:
    with _changed:
        return _uses == 0 or (_changed.wait(0.5) and _uses == 0)
