"""The types between the training loop and its callers. Does not import torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from training.options import Quantisation
from training.spec import TrainSpec


@dataclass(frozen=True)
class Example:
    """One prepared picture: a PNG of exactly the training size, RGB, or RGBA with a mask."""

    path: Path
    caption: str
    sha256: str  # of the PNG's bytes
    width: int
    height: int
    is_mirrored: bool = False  # trained on mirrored horizontally
    prepared: tuple[int, int] | None = None  # width and height of the PNG, if it is scaled down to the training size
    label: str = ""  # how messages name it


@dataclass(frozen=True)
class Progress:
    """The progress of a training after `step` of `total` steps."""

    step: int
    total: int
    loss: float  # mean over the steps since the last report
    seconds_left: float | None  # None until it can be estimated
    seconds_per_step: float | None = None
    validation_loss: float | None = None  # of the last validation, if pictures are held out


class Control(Protocol):
    """Connects a running training with its caller. Methods are called on the thread that called `train`."""

    def check(self) -> None:
        """Called several times a second. To end the training: Cancelled, LeaseLost, HandOver or TrainingTimeout."""

    def report(self, progress: Progress) -> None:
        """Called after the first step, then at most once a second, and after the last step."""


class CheckpointStore(Protocol):
    """Stores the checkpoints of one job, with atomic writes."""

    def steps(self) -> Sequence[int]:
        """The steps of the stored checkpoints, ascending."""

    def load(self, step: int) -> bytes: ...

    def save(self, step: int, data: bytes) -> None:
        """Save a checkpoint. It is durable when this returns."""

    def drop(self, step: int) -> None:
        """Delete a checkpoint, if it exists."""


class PreviewStore(Protocol):
    """Stores the previews of a training for the owner."""

    def save(self, step: int, prompt: int, png: bytes) -> None:
        """Save the preview of prompt number `prompt`, from 0, after `step`. Replaces an earlier one."""


class LoraStore(Protocol):
    """Keeps LoRA files of checkpoints for the owner."""

    def save(self, step: int, data: bytes) -> None:
        """Save the LoRA file as it is after `step`. Replaces an earlier one."""


@dataclass(frozen=True)
class TrainRun:
    """The input of one training."""

    job_id: str
    spec: TrainSpec
    examples: Sequence[Example]
    dataset_sha256: str
    base_model: str  # its location: a folder, a .safetensors file or a hub id
    out: Path  # path of the LoRA file, which is written atomically
    checkpoints: CheckpointStore
    control: Control
    device: str = "auto"  # auto, cpu, cuda
    checkpoint_every_epochs: int = 10
    loras: LoraStore | None = None  # for a LoRA file of every checkpoint but the last; None: keep none
    previews: PreviewStore | None = None  # for the previews of the recipe; None: draw none
    baseline: bool = False  # draw the previews before the first step too, as the base model draws them
    encodings: Path | None = None  # folder of the cache of encoded pictures and captions
    precision: str = "auto"  # of the frozen base: auto (the fastest here), float32, bfloat16, float16
    quantise: Literal["auto"] | Quantisation = "auto"  # the frozen base; auto: as few bits as the device's memory asks
    slots: int = 0  # maximum of jobs in one step; 0: as many as pay on this device
    deterministic: bool = False  # on CUDA: a fixed number of slots, so that other jobs do not change the result
    training_adapter: Path | None = None  # of a few-step model: a de-distilling LoRA, merged only during training
    note: Callable[[str], None] = lambda _: None  # called with what the owner should know about the pictures


@dataclass(frozen=True)
class TrainResult:
    """The result of one training."""

    path: Path
    sha256: str
    size_bytes: int
    steps: int
    resumed_from: int  # step of the checkpoint that it resumed from; 0: none
    final_loss: float
    train_seconds: float  # in this attempt's loop
    device: str
    validation_loss: float | None = None  # of the weights in the file
    metadata: dict[str, Any] = field(default_factory=dict)
