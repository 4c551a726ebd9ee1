"""Recipes to begin with: for a character, an object and a style, in the terms of each family."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from core.errors import SpecInvalid
from jobs.requests import recipe_options
from jobs.subjects import subject_recipe
from training.families.registry import BASE_MODELS, FAMILIES
from training.spec import MIN_PICTURES, Learns, TrainSpec

_EPOCHS = 100  # the default of every family


@dataclass(frozen=True)
class Preset:
    """A recipe for one kind of subject. `prompts` have `{word}` for the trigger word with the class word."""

    kind: Learns
    title: str
    about: str
    recipe: Mapping[str, Any]
    prompts: tuple[str, ...]


# Samples after each quarter of the training, and the LoRA at each of them to choose from.
_QUARTERS = {"checkpoint_every": _EPOCHS // 4, "keep_checkpoints": True}
PRESETS = (
    Preset(
        "character",
        "A character or person",
        "Who it is in any place and pose. Captions name what changes from picture to picture.",
        {**_QUARTERS, "data": {"caption_dropout": 0.05}},
        (
            "a photo of {word}", "{word} walking through a city at night", "a close-up portrait of {word}",
            "{word} as a pencil drawing",
        ),
    ),
    Preset(
        "object",
        "An object or product",
        "What it looks like from all sides. Pictures keep their shapes, so nothing is cut off.",
        {**_QUARTERS, "aspect_buckets": True},
        (
            "a product photo of {word} on a white table", "{word} in a forest", "a hand that holds {word}",
            "{word} beside a window, morning light",
        ),
    ),
    Preset(
        "style",
        "A style",
        "How pictures look, whatever they show. More layers learn, and mirrored pictures count as well.",
        {**_QUARTERS, "adapter": {"targets": "all"}, "data": {"caption_dropout": 0.1, "flip": True}},
        (
            "a river in the mountains, {word}", "a portrait of a woman, {word}", "a cat on a sofa, {word}",
            "a street in the rain, {word}",
        ),
    ),
)  # fmt: skip
BY_KIND = {preset.kind: preset for preset in PRESETS}
# What belongs to a preset: another one replaces all of it, and nothing else.
_SET_BY_PRESETS = {
    "learns", "validation.previews", "validation.every_epochs",
    *(name for preset in PRESETS for name in recipe_options.by_path(preset.recipe)),
}  # fmt: skip


def kind_of(class_word: str | None) -> Learns:
    """The kind of a subject that is described by this class word."""
    given = {"base_model": "sd15", "trigger_word": "x", "seed": 0, "class_word": class_word or ""}
    return TrainSpec.model_validate(given).learnt


def prompts_for(kind: Learns, trigger_word: str | None, class_word: str | None) -> list[str]:
    """Sample prompts for a subject of this kind."""
    word = " ".join(filter(None, (trigger_word or "sks", None if kind == "style" else class_word)))
    return [prompt.format(word=word) for prompt in BY_KIND[kind].prompts]


def with_words(
    recipe: Mapping[str, Any], before: tuple[str | None, str | None], after: tuple[str | None, str | None]
) -> dict[str, Any]:
    """A recipe with other words in its sample prompts, if these are a preset's; each pair: trigger and class word.

    Otherwise samples would show a word that the training does not learn, such as the stand-in of a subject whose preset
    was chosen before its trigger word. Prompts that the owner has written stay.
    """
    validation = recipe.get("validation")
    if isinstance(validation, Mapping) and isinstance(previews := validation.get("previews"), list | tuple):
        for kind, trigger_word, class_word in product(BY_KIND, {before[0], None}, {before[1], None}):
            if list(previews) == prompts_for(kind, trigger_word, class_word):
                return {**recipe, "validation": {**validation, "previews": prompts_for(kind, *after)}}
    return dict(recipe)


def recipe_for(
    kind: Learns, base_model: str | None, trigger_word: str | None, class_word: str | None
) -> dict[str, Any]:
    """The recipe of a preset on a base model, with its sample prompts, without options that the family refuses."""
    refused = FAMILIES[BASE_MODELS[base_model or "sd15"].family].refused
    recipe: dict[str, Any] = {"learns": kind}
    for name, value in BY_KIND[kind].recipe.items():
        if isinstance(value, dict):
            kept = {option: one for option, one in value.items() if f"{name}.{option}" not in refused}
            recipe |= {name: kept} if kept else {}
        else:
            recipe[name] = value
    samples = {"previews": prompts_for(kind, trigger_word, class_word), "every_epochs": _EPOCHS // 4}
    return recipe | {"validation": samples}


def added_to(
    recipe: Mapping[str, Any], made: Mapping[str, Any], base_model: str | None, pictures: int
) -> dict[str, Any]:
    """A stored recipe with that of a preset. Options that no preset sets, such as the steps, keep their values.

    The samples are those of each quarter of the stored length, for a training of so many `pictures`. If both recipes do
    not go together, it is the preset's alone.
    """
    kept = {name: value for name, value in recipe_options.by_path(recipe).items() if name not in _SET_BY_PRESETS}
    quarter = max(1, -(-_epochs(kept, pictures) // 4))  # rounded up: no fifth one just before the end
    quarters = {"checkpoint_every": quarter, "validation.every_epochs": quarter}
    both = recipe_options.nested({**kept, **recipe_options.by_path(made), **quarters})
    try:
        return subject_recipe.parse(both, base_model)
    except SpecInvalid:
        return dict(made)


def _epochs(recipe: Mapping[str, Any], pictures: int) -> int:
    """How often a training by this recipe uses each picture."""
    if steps := recipe.get("max_steps"):
        return int(steps) * int(recipe.get("batch_size") or 1) // max(pictures, MIN_PICTURES)
    return int(recipe.get("epochs") or _EPOCHS)
