"""Drawings on the device of a worker, which trainings may use too."""

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.errors import DeviceLost, OutOfMemory
from training import device_failure
from training.backends import resident
from training.device import choose, make_current
from training.engine.faults import free_memory, is_device_error, is_out_of_memory
from training.sample import DrawingPipeline

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PictureOrder:
    """One picture: its number in the drawing, its seed, and the strength of the LoRA."""

    number: int
    seed: int
    strength: float


@dataclass(frozen=True)
class DrawingOrder:
    """What to draw. `base_model` is its location: a folder, a .safetensors file or a hub id."""

    base_model: str
    family: str
    lora: Path
    prompt: str
    pictures: Sequence[PictureOrder]
    steps: int
    guidance: float
    size: tuple[int, int]
    device: str = "auto"


def draw_pictures(
    order: DrawingOrder, check: Callable[[], None], on_step: Callable[[], None], save: Callable[[int, bytes], None]
) -> bool:
    """Draw the pictures one by one, and pass each to `save` with its number, as PNG.

    `check` is called while the device is used by others, `on_step` after each step; both may raise to end the drawing.
    Returns whether trainings waited for the drawing. Raises BaseModelUnavailable, LoraInvalid, OutOfMemory, DeviceLost.
    """
    device = choose(order.device)
    with resident.whole_device(check) as trainings_waited:
        try:
            with _device_errors(order):
                make_current(device)
                _draw(order, on_step, save)
        finally:
            free_memory(device)  # before the trainings get their denoiser back
    return trainings_waited


def _draw(order: DrawingOrder, on_step: Callable[[], None], save: Callable[[int, bytes], None]) -> None:
    """Apart, so that the pipeline is gone when this returns."""
    pipeline = DrawingPipeline(order.base_model, order.family, lora=order.lora, device=order.device)
    for picture in order.pictures:
        made = pipeline.draw(
            order.prompt, picture.seed, strength=picture.strength, steps=order.steps, guidance=order.guidance,
            size=order.size, on_step=on_step,
        )  # fmt: skip
        out = io.BytesIO()
        made.save(out, "PNG")
        save(picture.number, out.getvalue())


@contextmanager
def _device_errors(order: DrawingOrder) -> Iterator[None]:
    """Translate errors of torch and Python, without the frames that reference the tensors of the drawing."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_device_error(error):
            device_failure.report(f"{type(error).__name__}: {str(error)[:200]}")
            raise DeviceLost("the device of the worker failed; another worker continues") from None
        if not is_out_of_memory(error):
            raise
        width, height = order.size
        raise OutOfMemory(
            f"memory ran out while drawing {order.family} at {width} by {height} pixels: use a smaller size"
        ) from None
