"""The options of a recipe for people: each with its help, its value, and whether it differs from the default."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.spec import GROUPS, TrainSpec

# The fields that no group has. Options of groups have their help in `training.options`.
_HELP = {
    "rank": "the size of the LoRA: more learns more details, and needs more pictures",
    "alpha": "the LoRA is scaled by alpha / rank",
    "optimizer": "adamw, adamw8bit (less memory) or prodigy (finds the learning rate itself)",
    "learning_rate": "how far one step changes the LoRA; with prodigy about 1",
    "batch_size": "pictures per step",
    "resolution": "in pixels, a multiple of 64",
    "aspect_buckets": "train at shapes near those of the pictures instead of squares",
    "epochs": "how often each picture is used",
    "max_steps": "the number of steps; replaces epochs",
    "seed": "the same seed gives the same LoRA",
    "backend": "where it is trained: local workers or ai-toolkit",
    "captions": "given: yours; auto: missing ones are written for you; template: your words alone",
    "learns": "what captions that are written for you leave out; default: by what the subject is",
    "checkpoint_every": "epochs between checkpoints",
    "keep_checkpoints": "keep the LoRA file of every checkpoint, to choose from",
}
_NOT_DEFAULT = frozenset({"seed"})  # every training has one of its own


@dataclass(frozen=True)
class RecipeOption:
    """One option: `name` is its path in a request, such as `adapter.targets`."""

    name: str
    help: str
    value: Any
    default: Any

    @property
    def is_changed(self) -> bool:
        """Whether the value differs from the default of the base model."""
        return self.name not in _NOT_DEFAULT and self.value != self.default

    @property
    def shown(self) -> str:
        """The value as text."""
        return as_text(self.value)

    @property
    def shown_default(self) -> str:
        return as_text(self.default)


@dataclass(frozen=True)
class RecipeChange:
    """An option that two recipes do not share, with both values."""

    name: str
    before: Any
    after: Any


def options_of(spec: TrainSpec) -> list[RecipeOption]:
    """Every option of a recipe except base model and words, with the defaults of its base model."""
    usual = flat(defaults(spec.base_model, spec.family))
    return [RecipeOption(name, help_of(name), value, usual[name]) for name, value in flat(spec).items()]


def defaults(base_model: str, family: str | None = None) -> TrainSpec:
    """The recipe of a training on this base model that asks for nothing."""
    given = {"base_model": base_model, "family": family, "trigger_word": "x", "seed": 0}
    return TrainSpec.model_validate(given)


def flat(spec: TrainSpec) -> dict[str, Any]:
    """The options of a recipe by their paths, as JSON values."""
    fields = spec.model_dump(mode="json", include={*_HELP, *GROUPS})
    return by_path({name: fields[name] for name in (*_HELP, *GROUPS)})


def by_path(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe, whole or in part, by the paths of their options."""
    plain = {name: value for name, value in recipe.items() if name not in GROUPS}
    groups = {group: recipe.get(group) or {} for group in GROUPS}
    return plain | {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `by_path`. A path that is no option stays as it is."""
    recipe: dict[str, Any] = {}
    for name, value in options.items():
        group, dot, option = name.partition(".")
        if dot and group in GROUPS:
            recipe.setdefault(group, {})[option] = value
        else:
            recipe[name] = value
    return recipe


def help_of(name: str) -> str:
    """What an option does, in a few words."""
    group, dot, option = name.partition(".")
    if not dot:
        return _HELP[name]
    kind = TrainSpec.model_fields[group].annotation
    assert kind is not None  # noqa: S101 - each group is a class
    return kind.model_fields[option].description or ""


def changes(before: TrainSpec, after: TrainSpec) -> list[RecipeChange]:
    """What differs between two recipes, base model and words included, except the seed."""
    names = ("base_model", "trigger_word", "class_word")
    old = {name: getattr(before, name) for name in names} | flat(before)
    new = {name: getattr(after, name) for name in names} | flat(after)
    return [
        RecipeChange(name, old[name], new[name]) for name in new if old[name] != new[name] and name not in _NOT_DEFAULT
    ]


def as_text(value: Any) -> str:
    """A value of an option for people."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "; ".join(map(str, value)) or "none"
    return str(value)
