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
from training.data.framing import Frame, view_of
from training.engine.cohorts.slot_job import Extras, Scale
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
    scales: Sequence[Scale] = ()  # at each of the recipe's resolutions; empty: as the pictures are prepared
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
    sizes = {side: _at(trained, side, spec) for side in spec.data.resolutions}
    conditions = _in_groups(
        {
            **_at_sizes(trained, sizes, lambda examples: _captions(spec, examples, has_classes)),
            "held": held,
            "previews": [replace(canvas, caption=prompt) for prompt in _prompts(spec)],
        },
        lambda wanted: _conditions(family, base, encodings, spec, wanted),
    )
    moments = _in_groups(
        {**_at_sizes(trained, sizes, lambda examples: _pictures(spec, examples)), "held": held},
        lambda wanted: encodings.moments(family, base, wanted, check),
    )

    def scale(examples: Sequence[Example], prefix: str = "") -> Scale:
        encoded = moments[f"{prefix}trained"]
        extras = Extras(
            mirrored=moments[f"{prefix}mirrored"],
            blanks=conditions[f"{prefix}blanks"],
            classes=conditions[f"{prefix}classes"],
            masks=_masks(spec, examples, encoded),
        )
        return Scale(encoded, conditions[f"{prefix}trained"], extras)

    validation_set = None
    if held:
        names, masks = [one.sha256 for one in held], _masks(spec, held, moments["held"])
        validation_set = ValidationSet(names, moments["held"], conditions["held"], masks)
    preview_prompts = None
    if spec.validation.previews:
        first = moments["trained"][0]
        preview_prompts = _preview_prompts(spec, conditions["previews"], first, trained[0].height)
    whole = scale(trained)
    scales = [scale(scaled, f"{side} ") for side, scaled in sizes.items()]
    return EncodedDataset(whole.moments, whole.conditions, whole.extras, validation_set, preview_prompts, scales, notes)


def _conditions(
    family: FamilyCode, base: Base, encodings: Encodings, spec: TrainSpec, wanted: Sequence[Example]
) -> list[Condition]:
    """The conditions of captions: only their tokens, if each step encodes them with trained text encoders."""
    if spec.adapter.text_encoder and family.tokenize_captions is not None:
        return family.tokenize_captions(base, wanted)
    return encodings.conditions(family, base, wanted)


def _at_sizes(
    trained: Sequence[Example],
    sizes: Mapping[int, Sequence[Example]],
    groups: Callable[[Sequence[Example]], dict[str, list[Example]]],
) -> dict[str, list[Example]]:
    """The groups of the pictures as they are prepared, and those at each size, named `SIDE GROUP`."""
    scaled = {f"{side} {name}": group for side, at in sizes.items() for name, group in groups(at).items()}
    return {**groups(trained), **scaled}


def _preview_prompts(
    spec: TrainSpec, conditions: Sequence[Condition], first: torch.Tensor, height: int
) -> PreviewPrompts:
    """first: the moments of a picture that is `height` pixels high."""
    side = spec.resolution * first.shape[-2] // height
    *prompts, blank = conditions
    return PreviewPrompts(prompts, blank, (len(first) // 2, side, side), spec.seed)


def _at(examples: Sequence[Example], side: int, spec: TrainSpec) -> list[Example]:
    """The examples at another resolution than the one that they are prepared for."""
    made = []
    for one in examples:
        view = view_of(one.width, one.height, Frame(side, spec.aspect_buckets))
        is_same = (view.width, view.height) == (one.width, one.height)
        prepared = None if is_same else (one.width, one.height)
        made.append(replace(one, width=view.width, height=view.height, prepared=prepared))
    return made


def _captions(spec: TrainSpec, examples: Sequence[Example], has_classes: bool) -> dict[str, list[Example]]:
    """The examples with each caption that the recipe needs of them."""
    return {
        "trained": list(examples),
        "blanks": [replace(one, caption="") for one in examples] if spec.data.caption_dropout else [],
        "classes": [replace(one, caption=class_caption(spec, one.caption)) for one in examples if has_classes],
    }


def _pictures(spec: TrainSpec, examples: Sequence[Example]) -> dict[str, list[Example]]:
    """The examples with each picture that the recipe needs of them."""
    return {
        "trained": list(examples),
        "mirrored": [replace(one, is_mirrored=True) for one in examples] if spec.data.flip else [],
    }


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
