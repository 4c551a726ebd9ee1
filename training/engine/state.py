"""The state of a training at one step, as a checkpoint stores it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from training.lora.safetensor import Array
from training.options import Quantisation


@dataclass(frozen=True)
class State:
    """A training after `step` steps: the weights of the adapter, in float32, and the state of the optimizer."""

    step: int
    weights: Mapping[str, Array]  # by parameter name
    prediction: str  # epsilon, v_prediction or flow: for the file's metadata
    # The optimizer's state: AdamW's moments `first` and `second` and an `average`, each by parameter name; the rest in
    # `optimizer`, by the optimizer's own names.
    kept: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    precision: str = ""  # of the frozen base: float32, bfloat16 or float16
    quantisation: Quantisation = "none"  # of the frozen base
    loss: float = 0.0  # smoothed, as reported
    validation_losses: tuple[tuple[int, float], ...] = ()  # (step, loss) of all validations so far
    best: Mapping[str, Array] = field(default_factory=dict)  # weights of the best validation, for `keep_best`

    @property
    def delivered(self) -> Mapping[str, Array]:
        """The weights for the LoRA file: of the best validation, else averaged, else the last."""
        return self.best or self.kept.get("average") or self.weights
