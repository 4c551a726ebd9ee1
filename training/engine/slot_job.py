"""One job in the engine, and what it shares with the jobs beside it."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from torch import Tensor

from training.engine.optimizer import Stack
from training.engine.randomness import SampleOrder
from training.engine.state import State
from training.engine.validation import PreviewPrompts, ValidationSet
from training.families.family import Condition
from training.lora.safetensor import Array
from training.ports import TrainRun


@dataclass(frozen=True)
class Extras:
    """What options ask for beside moments and captions, one of each for every picture; empty if they do not."""

    mirrored: Sequence[Tensor] = ()  # moments of the picture turned left to right
    blanks: Sequence[Condition] = ()  # of an empty caption
    classes: Sequence[Condition] = ()  # of the caption with the class word for the trigger word, where a prior is kept
    masks: Sequence[Tensor] = ()  # [1, h, w] at the latents' resolution, 1 on average


@dataclass(frozen=True)
class Shape:
    """What jobs must share to be trained in one step: latents [C, h, w], pictures per step, padded rank, and whether
    they keep a prior beside pictures, which takes operations of its own.
    """

    latents: tuple[int, ...]
    batch_size: int
    rank: int
    has_prior: bool = False
    targets: str = "attention"
    dora: bool = False
    optimizer: str = "adamw"


@dataclass(eq=False)
class SlotJob:
    """One job in the engine: what it trains on, where it stands, and what its own thread gets.

    The engine's thread writes `step`, `losses`, `snapshots`, `error` and `gone`, then sets `news`; the job's thread
    writes `is_abandoned`, then `leaving`.
    """

    run: TrainRun
    total: int
    order: SampleOrder
    moments: Sequence[Tensor]  # of every picture, on the CPU
    conditions: Sequence[Condition]  # of every picture's caption, on the device
    shape: Shape
    state: State | None  # where to begin; None for a fresh start
    checkpoint_every: int  # steps
    slots: int  # most slots of the step that it may share
    is_fixed: bool  # whether always exactly so many, filled or idle: then its bits depend on nobody
    extras: Extras = field(default_factory=Extras)
    validation_set: ValidationSet | None = None
    preview_prompts: PreviewPrompts | None = None
    evaluate_every: int = 0  # steps between two evaluations; 0: there is none

    start: int = 0  # steps that were done before
    step: int = 0  # steps that are done
    attended: int = 0  # the last step after which all that was due was begun: an evaluation, a checkpoint
    is_held: bool = False  # it keeps its slot and waits for its evaluation, while the others step
    held_row: Stack | None = None  # of one slot: its row while it is held, since a step moves every row of the stack
    losses: deque[tuple[int, float]] = field(default_factory=deque)  # (done, loss), oldest first
    looks: list[tuple[int, float]] = field(default_factory=list)  # (done, validation loss), oldest first
    best: Mapping[str, Array] = field(default_factory=dict)  # the weights of the best look, if they are to be kept
    drawn: deque[tuple[int, list[Tensor]]] = field(default_factory=deque)  # (done, latents of each prompt)
    snapshots: deque["Snapshot"] = field(default_factory=deque)  # to be kept, oldest first
    error: BaseException | None = None
    gone: bool = False  # it has no slot any more: finished, failed, or let go
    leaving: bool = False  # it asked to be let go
    is_parting: bool = False  # it is to be let go, after the evaluation that is under way
    is_abandoned: bool = False  # nothing more is wanted of it
    news: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        self.start = self.step = self.attended = self.state.step if self.state is not None else 0
        if self.state is not None:
            self.looks, self.best = list(self.state.looks), self.state.best

    @property
    def is_done(self) -> bool:
        """Whether all of its steps are done."""
        return self.step >= self.total

    @property
    def is_evaluation_due(self) -> bool:
        """Whether the job is to be evaluated after the step at which it stands."""
        return bool(self.evaluate_every) and (self.step % self.evaluate_every == 0 or self.is_done)

    def end(self, error: BaseException | None = None) -> None:
        """Let the job's thread know that the engine is done with it."""
        self.error = error
        self.gone = True
        self.news.set()


@dataclass(frozen=True)
class Snapshot:
    """One job as it was after `step` steps: a copy of its row, on the device until its state is asked for.

    So a checkpoint costs the engine's thread a copy; reading, writing and sending it is for the job's own.
    """

    step: int
    row: Stack  # of one slot
    rank: int
    rest: Mapping[str, Any]  # what else is in a State

    def state(self) -> State:
        """It all, on the host. Waits for the device."""
        weights = self.row.layout.read(self.row.masters[0], self.rank)
        return State(self.step, weights=weights, kept=self.row.state(0, self.rank), **self.rest)
