"""The encoded dataset of one training: pictures, captions, their variants, held-out pictures and preview prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from core.errors import TooFewImages
from training.backends.captions import fit_captions
from training.backends.encodings import Encodings
from training.data.dataset import class_caption
from training.engine.cohorts.slot_job import Extras
from training.engine.evaluation.validation import PreviewPrompts, ValidationSet
from training.engine.randomness import generator
from training.families.family import Base, Condition, FamilyCode
from training.families.latents import mask
from training.ports import Example
from training.spec import TrainSpec

Encoded = TypeVar("Encoded")


@dataclass(frozen=True)
class EncodedDataset:
    """The encoded pictures and captions to train on, and those for validation and previews."""

    moments: Sequence[torch.Tensor]
    conditions: Sequence[Condition]
    extras: Extras
    validation_set: ValidationSet | None
    preview_prompts: PreviewPrompts | None
    notes: Sequence[str] = ()  # on captions that are not read to their end


def split_held_out(examples: Sequence[Example], spec: TrainSpec) -> tuple[list[Example], list[Example]]:
    """Split off held-out pictures at random, by the job's seed: (training, held out). Raises TooFewImages."""
    count = spec.validation.held_out
    if count >= len(examples):
        raise TooFewImages(f"{count} of {len(examples)} pictures would be held out, which leaves none to train on")
    if not count:
        return list(examples), []
    chosen = set(torch.randperm(len(examples), generator=generator(spec.seed, "held out", 0))[:count].tolist())
    trained = [example for place, example in enumerate(examples) if place not in chosen]
    return trained, [examples[place] for place in sorted(chosen)]


def encode_dataset(
    family: FamilyCode, base: Base, encodings: Encodings, spec: TrainSpec, examples: Sequence[Example],
    check: Callable[[], None],
) -> EncodedDataset:  # fmt: skip
    """Encode everything that the recipe needs: first all captions, then all pictures, so that the text encoders and the
    VAE are each loaded at most once, one after the other. `check` may raise between batches.
    """
    fitted, notes = fit_captions(family, base, spec, examples)
    trained, held = split_held_out(fitted, spec)
    has_classes = bool(spec.objective.prior_weight or spec.objective.prior_share)
    canvas = Example(Path(), "", "", spec.resolution, spec.resolution)
    conditions = _in_groups(
        {
            "trained": trained,
            "held": held,
            "blanks": [replace(one, caption="") for one in trained] if spec.data.caption_dropout else [],
            "classes": [replace(one, caption=class_caption(spec, one.caption)) for one in trained if has_classes],
            "previews": [replace(canvas, caption=prompt) for prompt in _prompts(spec)],
        },
        lambda wanted: encodings.conditions(family, base, wanted),
    )
    moments = _in_groups(
        {
            "trained": trained,
            "held": held,
            "mirrored": [replace(one, is_mirrored=True) for one in trained] if spec.data.flip else [],
        },
        lambda wanted: encodings.moments(family, base, wanted, check),
    )

    extras = Extras(
        mirrored=moments["mirrored"],
        blanks=conditions["blanks"],
        classes=conditions["classes"],
        masks=_masks(spec, trained, moments["trained"]),
    )
    validation_set = None
    if held:
        names, masks = [one.sha256 for one in held], _masks(spec, held, moments["held"])
        validation_set = ValidationSet(names, moments["held"], conditions["held"], masks)
    preview_prompts = None
    if spec.validation.previews:
        first = moments["trained"][0]
        side = spec.resolution * first.shape[-2] // trained[0].height
        *prompts, blank = conditions["previews"]
        preview_prompts = PreviewPrompts(prompts, blank, (len(first) // 2, side, side), spec.seed)
    return EncodedDataset(moments["trained"], conditions["trained"], extras, validation_set, preview_prompts, notes)


def _masks(spec: TrainSpec, examples: Sequence[Example], moments: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The mask of each picture in the size of its latents; none if the loss is not masked."""
    if not spec.objective.masked:
        return []
    return [mask(one, (held.shape[-2], held.shape[-1])) for one, held in zip(examples, moments, strict=True)]


def _prompts(spec: TrainSpec) -> tuple[str, ...]:
    """The preview prompts, and the empty prompt that guidance needs."""
    return (*spec.validation.previews, "") if spec.validation.previews else ()


def _in_groups(
    groups: Mapping[str, Sequence[Example]], encode: Callable[[Sequence[Example]], list[Encoded]]
) -> dict[str, list[Encoded]]:
    """Encode the examples of all groups in one call; returns the results by group."""
    made = iter(encode([one for group in groups.values() for one in group]))
    return {name: [next(made) for _ in group] for name, group in groups.items()}
