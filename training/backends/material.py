"""What one training works on, encoded: pictures and captions, mirrored and mute, held out, and prompts to draw."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from core.errors import TooFewImages
from training.backends.encodings import Encodings
from training.backends.randomness import generator
from training.data.dataset import class_caption
from training.engine.draw import Extras
from training.engine.validation import Exam, Sketch
from training.families.family import Base, Condition, Family
from training.families.latents import mask
from training.ports import Example
from training.spec import TrainSpec


@dataclass(frozen=True)
class Material:
    """All that is kept of the pictures that are trained on, and of what is looked at beside the training."""

    moments: Sequence[torch.Tensor]
    conditions: Sequence[Condition]
    extras: Extras
    exam: Exam | None
    sketch: Sketch | None


def split(examples: Sequence[Example], spec: TrainSpec) -> tuple[list[Example], list[Example]]:
    """The pictures to train on, and those that chance, by the job's seed, holds out. Raises TooFewImages."""
    count = spec.validation.held_out
    if count >= len(examples):
        raise TooFewImages(f"{count} of {len(examples)} pictures are to be held out: none is left to train on")
    if not count:
        return list(examples), []
    chosen = set(torch.randperm(len(examples), generator=generator(spec.seed, "held out", 0))[:count].tolist())
    trained = [example for place, example in enumerate(examples) if place not in chosen]
    return trained, [examples[place] for place in sorted(chosen)]


def encoded(
    family: Family, base: Base, encodings: Encodings, spec: TrainSpec, examples: Sequence[Example],
    check: Callable[[], None],
) -> Material:  # fmt: skip
    """Encode everything that the recipe asks for; `check` may raise between pictures."""
    trained, held = split(examples, spec)

    def told(these: Sequence[Example]) -> list[Condition]:
        return encodings.conditions(family, base, these)

    def seen(these: Sequence[Example]) -> list[torch.Tensor]:
        return encodings.moments(family, base, these, check)

    def masks(these: Sequence[Example], moments: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if not spec.objective.masked:
            return []
        return [mask(one, (shape.shape[-2], shape.shape[-1])) for one, shape in zip(these, moments, strict=True)]

    conditions, moments = told(trained), seen(trained)
    blanks = [replace(one, caption="") for one in trained] if spec.data.caption_dropout else []
    classes = [replace(one, caption=class_caption(spec, one.caption)) for one in trained]
    extras = Extras(
        mirrored=seen([replace(one, is_mirrored=True) for one in trained]) if spec.data.flip else [],
        blanks=told(blanks),
        classes=told(classes) if spec.objective.prior_weight or spec.objective.prior_share else [],
        masks=masks(trained, moments),
    )
    exam = None
    if held:
        looked_at = seen(held)
        exam = Exam([one.sha256 for one in held], looked_at, told(held), masks(held, looked_at))
    sketch = None
    if spec.validation.previews:
        sketch = _sketch(spec, told, trained[0].height // moments[0].shape[-2], len(moments[0]) // 2)
    return Material(moments, conditions, extras, exam, sketch)


def _sketch(
    spec: TrainSpec, told: Callable[[Sequence[Example]], list[Condition]], factor: int, channels: int
) -> Sketch:
    """The previews that are asked for: squares at the recipe's resolution; `factor` is pixels per latent."""
    side = spec.resolution
    canvas = Example(Path(), "", "", side, side)
    *conditions, blank = told([replace(canvas, caption=prompt) for prompt in (*spec.validation.previews, "")])
    return Sketch(conditions, blank, (channels, side // factor, side // factor), spec.seed)
