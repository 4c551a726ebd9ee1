"""Drawings on the device of a worker, which trainings may use too."""

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.backends import resident
from training.backends.device_errors import device_errors
from training.device import choose, make_current
from training.engine.faults import free_memory
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
            width, height = order.size
            too_small = f"memory ran out while drawing {order.family} at {width} by {height} pixels: use a smaller size"
            with device_errors(too_small):
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
