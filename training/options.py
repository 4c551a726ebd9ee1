"""The optional groups of a recipe: each a frozen set of options whose defaults mean what a training does without them.

An option that is not named leaves a training as it is, bit for bit: its recipe in files and checkpoints is the same
too, because only what differs from the defaults is written there (`to_dict`).
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Targets = Literal["attention", "all"]
Schedule = Literal["constant", "linear", "cosine"]
Weighting = Literal["none", "min_snr", "debiased"]
Quantisation = Literal["none", "8bit", "4bit"]  # of a frozen base model
Prompt = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")
]

MIN_SNR_GAMMA = 5.0  # of min_snr, as its paper recommends


class Group(BaseModel):
    """Options that belong together: an object in a request, where null stands for an option's default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _silent(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given

    def to_dict(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON."""
        return self.model_dump(mode="json", exclude_defaults=True)


class Adapter(Group):
    """What a LoRA is attached to, and of which kind it is."""

    targets: Targets = Field(default="attention", description="which layers get a LoRA")
    rslora: bool = Field(default=False, description="scale by alpha / sqrt(rank) instead of alpha / rank")
    dora: bool = Field(default=False, description="learn the length of every output's weights apart from the rest")


class Optimization(Group):
    """How the weights are moved; `learning_rate` and `optimizer` are fields of the spec itself."""

    schedule: Schedule = Field(default="constant", description="of the learning rate, over all steps")
    warmup_steps: int = Field(default=0, ge=0, le=100_000, description="steps over which the rate rises from zero")
    loraplus_ratio: float = Field(default=1.0, ge=1.0, le=64.0, description="rate of B over rate of A")
    weight_decay: float = Field(default=1e-2, ge=0.0, le=1.0, description="decoupled, times the rate, per step")
    max_grad_norm: float = Field(default=1.0, gt=0.0, le=1e6, description="gradients are scaled down to this length")
    ema_decay: float = Field(default=0.0, ge=0.0, le=0.99999, description="of the averaged weights; 0: no averaging")


class Objective(Group):
    """What the loss asks for."""

    weighting: Weighting = Field(default="none", description="how much each noise level counts")
    noise_offset: float = Field(default=0.0, ge=0.0, le=1.0, description="noise that a whole channel has in common")
    prior_weight: float = Field(default=0.0, ge=0.0, le=10.0, description="of saying what the base says of the class")
    prior_share: float = Field(default=0.0, ge=0.0, le=0.9, description="of samples that ask this instead of a picture")
    masked: bool = Field(default=False, description="only what a picture's mask shows counts")


class Data(Group):
    """How pictures and captions are met."""

    caption_dropout: float = Field(default=0.0, ge=0.0, le=0.9, description="how often a caption is left out")
    flip: bool = Field(default=False, description="meet every picture also mirrored, left and right")


class Validation(Group):
    """What is looked at beside the training: held-out pictures, previews."""

    held_out: int = Field(default=0, ge=0, le=20, description="pictures that are not trained on, but measured by")
    every_epochs: int = Field(default=10, ge=1, le=500, description="epochs from one look to the next")
    patience: int = Field(default=0, ge=0, le=100, description="looks without a better one that end it; 0: none do")
    keep_best: bool = Field(default=False, description="deliver the LoRA of the best look instead of the last")
    previews: tuple[Prompt, ...] = Field(default=(), max_length=4, description="prompts that are drawn at every look")

    @model_validator(mode="after")
    def _has_something_to_go_by(self) -> Self:
        if not self.held_out and (self.patience or self.keep_best):
            raise ValueError("patience and keep_best go by held-out pictures: set held_out to at least 1")
        return self


def parse_assignments(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Groups from `group.option=value`, as on a command line; a value is JSON, or else text. Raises ValueError."""
    groups: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        group, dot, option = name.partition(".")
        if not equals or not dot or not option:
            raise ValueError(f"{assignment!r} is not of the form group.option=value, such as adapter.targets=all")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        groups.setdefault(group, {})[option] = value
    return groups
