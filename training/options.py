"""The optional groups of a recipe: each a frozen set of options whose defaults mean what a training does without them.

An option that is not named leaves a training as it is, bit for bit: its recipe in files and checkpoints is the same
too, because only what differs from the defaults is written there (`told`).
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Targets = Literal["attention", "all"]
Schedule = Literal["constant", "linear", "cosine"]


class Group(BaseModel):
    """Options that belong together: an object in a request, where null stands for an option's default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _silent(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given

    def told(self) -> dict[str, Any]:
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


class Data(Group):
    """How pictures and captions are met."""


class Validation(Group):
    """What is looked at beside the training: held-out pictures, previews."""
