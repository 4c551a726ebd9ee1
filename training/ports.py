"""What a training takes and gives, without torch: the seams between the loop and whoever runs it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from training.options import Quantisation
from training.spec import TrainSpec


@dataclass(frozen=True)
class Example:
    """One prepared picture: a PNG of exactly the size it is trained at, RGB; with a mask, RGBA."""

    path: Path
    caption: str
    sha256: str  # of the PNG's bytes
    width: int
    height: int
    is_mirrored: bool = False  # to be met turned left to right


@dataclass(frozen=True)
class Progress:
    """Where a training stands after `step` of `total` steps."""

    step: int
    total: int
    loss: float  # mean over the steps since the last report
    seconds_left: float | None  # None until there is something to reckon with
    seconds_per_step: float | None = None
    validation_loss: float | None = None  # of the last look at the held-out pictures, if any are


class Control(Protocol):
    """The way between a running training and whoever watches it. Both are called on the thread that called `train`."""

    def check(self) -> None:
        """Called several times a second. Raises Cancelled, LeaseLost, HandOver or TrainingTimeout to end it."""

    def report(self, progress: Progress) -> None:
        """Called after the first step, then at most once a second, and after the last."""


class CheckpointStore(Protocol):
    """Where the checkpoints of one job are kept, each whole or not at all."""

    def steps(self) -> Sequence[int]:
        """Steps of the checkpoints that are there, in ascending order."""

    def load(self, step: int) -> bytes: ...

    def save(self, step: int, data: bytes) -> None:
        """Keep one. Its bytes are there when this ends."""

    def drop(self, step: int) -> None:
        """Let one go that is not needed any more; one that is gone is fine."""


class PreviewStore(Protocol):
    """Where pictures of the way are shown to who owns the job."""

    def save(self, step: int, prompt: int, png: bytes) -> None:
        """Keep the picture of a prompt, counted from 0, after `step`; the same again replaces it."""


@dataclass(frozen=True)
class TrainRun:
    """Everything that one training needs."""

    job_id: str
    spec: TrainSpec
    examples: Sequence[Example]
    dataset_sha256: str
    base_model: str  # a folder, a .safetensors file or a hub id, already looked up
    out: Path  # the LoRA file is written here, whole or not at all
    checkpoints: CheckpointStore
    control: Control
    device: str = "auto"  # auto, cpu, cuda
    checkpoint_every_epochs: int = 10
    previews: PreviewStore | None = None  # where they go if the recipe asks for any; None: they are not drawn
    encodings: Path | None = None  # folder where encoded pictures and captions are kept for other trainings
    precision: str = "auto"  # of the frozen base: auto (what is faster here), float32, bfloat16, float16
    quantise: Literal["auto"] | Quantisation = "auto"  # the frozen base; auto: as few bits as the device's memory asks
    slots: int = 0  # most jobs in one step; 0: as many as pay on this device
    deterministic: bool = False  # on CUDA: one number of slots, so that the same bits come whoever trains beside it
    training_adapter: Path | None = None  # z-image-turbo: a de-distilling LoRA, merged while training, not in the file


@dataclass(frozen=True)
class TrainResult:
    """What one training gave."""

    path: Path
    sha256: str
    size_bytes: int
    steps: int
    resumed_from: int  # the step of the checkpoint it went on from; 0 for a fresh start
    final_loss: float
    train_seconds: float  # in this attempt's loop
    device: str
    validation_loss: float | None = None  # of the weights in the file
    metadata: dict[str, Any] = field(default_factory=dict)
