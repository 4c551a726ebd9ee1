"""One job in the engine, and the shape that it shares with the other jobs of its cohort."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import torch
from torch import Tensor

from training.engine.evaluation.validation import PreviewPrompts, ValidationSet
from training.engine.optimizers.stack import Stack
from training.engine.randomness import SampleOrder, generator
from training.engine.state import State
from training.families.family import Condition
from training.lora.safetensor import Array
from training.options import Ranks
from training.ports import TrainRun


@dataclass(frozen=True)
class Extras:
    """Encodings for the options of a recipe, one per picture; empty for options that are off."""

    mirrored: Sequence[Tensor] = ()  # moments of the mirrored picture
    blanks: Sequence[Condition] = ()  # of an empty caption
    classes: Sequence[Condition] = ()  # of the caption with the class word, for prior preservation
    masks: Sequence[Tensor] = ()  # [1, h, w] at the latents' resolution, 1 on average


@dataclass(frozen=True)
class Scale:
    """All pictures of a job at one resolution."""

    moments: Sequence[Tensor]
    conditions: Sequence[Condition]  # those of some families depend on the size
    extras: Extras


@dataclass(frozen=True)
class Shape:
    """What jobs must have in common to be trained in one step."""

    latents: tuple[int, ...]  # shape of a picture's moments, [2C, h, w]; a job that steps alone has a value of its own
    batch_size: int
    ranks: Ranks  # padded
    has_prior: bool = False  # whether there is a prior loss beside the pictures': it takes operations of its own
    targets: str = "attention"
    dora: bool = False
    text_encoder: bool = False
    optimizer: str = "adamw"


@dataclass(eq=False)
class SlotJob:
    """One job in the engine: its data, its progress, and the results for its own thread.

    The engine's thread writes `step`, `losses`, `snapshots`, `previews`, `error` and `gone`, then sets `news`; the
    job's thread writes `is_abandoned`, then `leaving`.
    """

    run: TrainRun
    total: int
    order: SampleOrder
    moments: Sequence[Tensor]  # of every picture, on the CPU
    conditions: Sequence[Condition]  # of every picture's caption, on the device
    shape: Shape
    state: State | None  # the checkpoint to resume from; None: start at step 0
    checkpoint_every: int  # steps
    slots: int  # the most slots that its cohort may have
    is_fixed: bool  # always use exactly `slots` slots: then no bit of its result depends on other jobs
    extras: Extras = field(default_factory=Extras)
    scales: Sequence[Scale] = ()  # one of them is trained at each step; empty: the pictures as they are prepared
    validation_set: ValidationSet | None = None
    preview_prompts: PreviewPrompts | None = None
    evaluate_every: int = 0  # steps between two evaluations; 0: none

    start: int = 0  # steps done before this attempt
    step: int = 0  # steps done
    attended: int = 0  # the last step after which everything due (evaluation, checkpoint) was started
    is_held: bool = False  # keeps its slot and waits for its evaluation while the others step
    held_row: Stack | None = None  # a stack of one slot with its row while it is held: a step changes all rows
    losses: deque[tuple[int, float]] = field(default_factory=deque)  # (step, loss), oldest first
    validation_losses: list[tuple[int, float]] = field(default_factory=list)  # (step, loss), oldest first
    best: Mapping[str, Array] = field(default_factory=dict)  # the weights of the best validation, for `keep_best`
    previews: deque[tuple[int, list[Tensor]]] = field(default_factory=deque)  # (step, latents of each prompt)
    snapshots: deque["Snapshot"] = field(default_factory=deque)  # to save as checkpoints, oldest first
    error: BaseException | None = None
    gone: bool = False  # has no slot any more: finished, failed or released
    leaving: bool = False  # has asked to leave
    is_parting: bool = False  # leaves once its evaluation is finished
    is_abandoned: bool = False  # leaves at once: its result is not wanted
    news: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        self.start = self.step = self.attended = self.state.step if self.state is not None else 0
        if self.state is None and self.preview_prompts is not None and self.run.baseline:
            self.attended = -1  # what the base model draws is due before the first step
        if self.state is not None:
            self.validation_losses, self.best = list(self.state.validation_losses), self.state.best

    def scale(self, step: int) -> Scale:
        """The pictures of step number `step`, at the resolution that is drawn for it."""
        if not self.scales:
            return Scale(self.moments, self.conditions, self.extras)
        chance = generator(self.run.spec.seed, "resolution", step)
        return self.scales[int(torch.randint(len(self.scales), (1,), generator=chance))]

    @property
    def is_done(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.total

    @property
    def is_evaluation_due(self) -> bool:
        """Whether an evaluation is due after the current step."""
        return bool(self.evaluate_every) and (self.step % self.evaluate_every == 0 or self.is_done)

    def end(self, error: BaseException | None = None) -> None:
        """Tell the job's thread that the engine has released the job, or ended it with an error."""
        self.error = error
        self.gone = True
        self.news.set()


@dataclass(frozen=True)
class Snapshot:
    """A copy of one job's row after `step` steps, on the device until `state` is called.

    So a checkpoint costs the engine's thread only a copy; the job's own thread reads, serialises and saves it.
    """

    step: int
    row: Stack  # of one slot
    ranks: Ranks
    rest: Mapping[str, Any]  # the other fields of State

    def state(self) -> State:
        """The state on the host. Waits for the device."""
        weights = self.row.layout.read(self.row.masters[0], self.ranks)
        return State(self.step, weights=weights, kept=self.row.state(0, self.ranks), **self.rest)
