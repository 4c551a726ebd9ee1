"""What a captioner is, and how one runs on the device of a worker that also trains."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from training.backends import resident
from training.backends.device_errors import device_errors
from training.captioning import weights
from training.captioning.florence2 import Florence2
from training.device import choose, make_current
from training.engine.faults import free_memory

log = logging.getLogger(__name__)

TURN_S = 60.0  # how long trainings on the same device wait at a time


class Captioner(Protocol):
    """Writes captions of prepared pictures."""

    batch: int  # pictures that pay in one call

    def caption(self, pictures: Sequence[Path], instruction: str) -> list[str]:
        """What it says of each picture, at most some sentences. May ignore the instruction."""


@dataclass(frozen=True)
class CaptionOrder:
    """Pictures to caption, by their hash. `captioner` is its location: a folder or a hub id."""

    captioner: str
    instruction: str
    pictures: Mapping[str, Path]
    device: str = "auto"


def write_captions(order: CaptionOrder, check: Callable[[], None], save: Callable[[Mapping[str, str]], None]) -> None:
    """Caption the pictures and pass what was said to `save`, a few pictures at a time.

    The captioner is loaded, used and freed while trainings of this worker stop between two steps, for about a minute
    at a time; then they have as much time. `check` is called between pictures and while waiting, and may raise. Raises
    BaseModelUnavailable, OutOfMemory, DeviceLost.
    """
    folder = weights.locate(order.captioner)
    device = choose(order.device)
    left = list(order.pictures)
    while left:
        begun = time.monotonic()
        with resident.whole_device(check) as trainings_wait:
            try:
                with device_errors("memory ran out while captions were written: use a larger device"):
                    make_current(device)
                    _one_turn(Florence2(folder, device), order, left, check, save, is_shared=trainings_wait)
            finally:
                free_memory(device)  # before the trainings get their denoiser back
        if left and trainings_wait:
            _rest(time.monotonic() - begun, check)


def _one_turn(
    captioner: Captioner, order: CaptionOrder, left: list[str], check: Callable[[], None],
    save: Callable[[Mapping[str, str]], None], *, is_shared: bool,
) -> None:  # fmt: skip
    """Caption pictures until none is left, or trainings have waited for long enough."""
    until = time.monotonic() + TURN_S
    while left and not (is_shared and time.monotonic() > until):
        check()
        batch = left[: captioner.batch]
        said = captioner.caption([order.pictures[sha256] for sha256 in batch], order.instruction)
        save(dict(zip(batch, said, strict=True)))
        del left[: captioner.batch]


def _rest(seconds: float, check: Callable[[], None]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        check()
        time.sleep(0.2)
