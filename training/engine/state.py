"""What a training is at one step."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from training.lora.safetensor import Array
from training.options import Quantisation


@dataclass(frozen=True)
class State:
    """A training after `step` steps: the adapter, float32 by parameter name, and what its optimizer keeps."""

    step: int
    weights: Mapping[str, Array]
    prediction: str  # what the base model predicts, for the file's metadata
    # In parts: AdamW's moments `first` and `second` and an `average` by parameter name, the rest by names of its own.
    kept: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    precision: str = ""  # of the frozen base that it was trained on: float32, bfloat16 or float16
    quantisation: Quantisation = "none"  # of that base
    loss: float = 0.0  # smoothed, as reported
    looks: tuple[tuple[int, float], ...] = ()  # (step, validation loss) so far
    best: Mapping[str, Array] = field(default_factory=dict)  # weights of the best look, where they are to be kept

    @property
    def delivered(self) -> Mapping[str, Array]:
        """The weights that the file gets: of the best look, else averaged, else the last."""
        return self.best or self.kept.get("average") or self.weights
