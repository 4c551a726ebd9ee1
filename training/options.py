"""The optional groups of a recipe. Their defaults leave a training exactly as it is without them.

Files and checkpoints store only options that differ from the defaults (`to_dict`), so a new option does not change the
recipe of existing trainings.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from core.numbers import NumbersAreNotBools

Targets = Literal["attention", "all", "convolutions"]
Schedule = Literal["constant", "linear", "cosine"]
Weighting = Literal["none", "min_snr", "debiased"]
Quantisation = Literal["none", "8bit", "4bit"]  # of a frozen base model
Prompt = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")
]

Side = Annotated[int, Field(ge=64, le=2048, multiple_of=64)]

MIN_SNR_GAMMA = 5.0  # of min_snr, as recommended by its paper


class Ranks(NamedTuple):
    """The rank of each layer of one LoRA."""

    plain: int
    spatial: int | None = None  # of convolutions over several pixels; None: as the others

    def of(self, *, spatial: bool) -> int:
        """The rank of a layer."""
        return self.spatial if spatial and self.spatial is not None else self.plain


class Group(NumbersAreNotBools):
    """A group of options: a JSON object in a request, where null means the default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _silent(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given

    def to_dict(self) -> dict[str, Any]:
        """The options that differ from the defaults, as JSON values."""
        return self.model_dump(mode="json", exclude_defaults=True)


class Adapter(Group):
    """The layers that get a LoRA, and its kind."""

    targets: Targets = Field(default="attention", description="which layers get a LoRA")
    rslora: bool = Field(default=False, description="scale by alpha / sqrt(rank) instead of alpha / rank")
    dora: bool = Field(default=False, description="train the magnitudes of the weights separately (DoRA)")
    conv_rank: int | None = Field(
        default=None, ge=1, le=256, description="rank of 3 x 3 convolutions; default: the rank of the other layers"
    )
    conv_alpha: float | None = Field(
        default=None, gt=0, le=1024, description="alpha of 3 x 3 convolutions; default: the scale of the other layers"
    )
    text_encoder: bool = Field(default=False, description="also train a LoRA on the text encoders")

    @model_validator(mode="after")
    def _has_convolutions(self) -> Self:
        if self.targets != "convolutions" and (self.conv_rank is not None or self.conv_alpha is not None):
            raise ValueError("conv_rank and conv_alpha need targets convolutions")
        return self


class Optimization(Group):
    """Options of the optimizer. `learning_rate` and `optimizer` are fields of the spec itself."""

    schedule: Schedule = Field(default="constant", description="of the learning rate, over all steps")
    warmup_steps: int = Field(default=0, ge=0, le=100_000, description="steps over which the rate rises from zero")
    loraplus_ratio: float = Field(default=1.0, ge=1.0, le=64.0, description="rate of B over rate of A")
    weight_decay: float = Field(default=1e-2, ge=0.0, le=1.0, description="decoupled, times the rate, per step")
    max_grad_norm: float = Field(default=1.0, gt=0.0, le=1e6, description="gradients are clipped to this norm")
    text_encoder_learning_rate: float | None = Field(
        default=None, ge=1e-7, le=0.1, description="of the LoRA on the text encoders; default: the learning rate"
    )
    ema_decay: float = Field(default=0.0, ge=0.0, le=0.99999, description="of the averaged weights; 0: no averaging")


class Objective(Group):
    """Options of the loss."""

    weighting: Weighting = Field(default="none", description="how much each noise level counts")
    noise_offset: float = Field(default=0.0, ge=0.0, le=1.0, description="offset noise, shared by a whole channel")
    prior_weight: float = Field(
        default=0.0,
        ge=0.0,
        le=10.0,
        description="prior-preservation weight: keeps what the base model draws for the class",
    )
    prior_share: float = Field(default=0.0, ge=0.0, le=0.9, description="share of samples used for prior preservation")
    masked: bool = Field(default=False, description="the loss counts only what a picture's mask shows")


class Data(Group):
    """Options of the dataset."""

    caption_dropout: float = Field(
        default=0.0, ge=0.0, le=0.9, description="share of samples that are trained without a caption"
    )
    flip: bool = Field(default=False, description="also train on every picture mirrored horizontally")
    resolutions: tuple[Side, ...] = Field(
        default=(), max_length=4, description="each step trains at one of these instead of at `resolution` only"
    )


class Validation(Group):
    """Validation on held-out pictures, and previews."""

    held_out: int = Field(default=0, ge=0, le=20, description="pictures held out for validation")
    every_epochs: int = Field(default=10, ge=1, le=500, description="epochs between validations")
    patience: int = Field(
        default=0, ge=0, le=100, description="stop after this many validations without a better one; 0: never"
    )
    keep_best: bool = Field(default=False, description="deliver the LoRA of the best validation instead of the last")
    previews: tuple[Prompt, ...] = Field(default=(), max_length=4, description="prompts to draw at every validation")

    @model_validator(mode="after")
    def _has_held_out_pictures(self) -> Self:
        if not self.held_out and (self.patience or self.keep_best):
            raise ValueError("patience and keep_best need held-out pictures: set held_out to at least 1")
        return self


def parse_assignments(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parse `group.option=value` arguments. A value is JSON, or else text. Raises ValueError."""
    groups: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        group, dot, option = name.partition(".")
        if not equals or not dot or not option:
            raise ValueError(f"{assignment!r} must have the form group.option=value, such as adapter.targets=all")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        groups.setdefault(group, {})[option] = value
    return groups
