"""Jobs of one shape in the slots of one stack: seat them, step them all at once, let them go."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import torch
from torch import Tensor

from training.backends.checkpoint import State
from training.backends.randomness import Order
from training.engine import recording, share
from training.engine.adapters import Ports
from training.engine.compiler import Compiler
from training.engine.draw import Extras, Lot, draw
from training.engine.optimizer import Stack, Terms
from training.engine.schedule import rate_at
from training.engine.stacks import STACKS
from training.engine.step import Batch, Record, Step, Told, cuda_graph
from training.engine.validation import Exam, Sketch, draw_sketches, is_best, is_over, validation_loss
from training.families.family import Base, Condition, Family
from training.lora.safetensor import Array
from training.ports import TrainRun

# How many losses may be in flight on a GPU: reading one sooner would make the host wait for the device.
CUDA_ARREARS = 2
LADDER = (1, 2, 4, 8, 16, 32)


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


@dataclass
class Seat:
    """One job in the engine: what it trains on, where it stands, and what its own thread is told.

    The engine's thread writes `step`, `losses`, `snapshots`, `error` and `gone`, then sets `news`; the job's thread
    writes `leaving`.
    """

    run: TrainRun
    total: int
    order: Order
    moments: Sequence[Tensor]  # of every picture, on the CPU
    conditions: Sequence[Condition]  # of every picture's caption, on the device
    shape: Shape
    state: State | None  # where to begin; None for a fresh start
    checkpoint_every: int  # steps
    slots: int  # most slots of the step that it may share
    is_fixed: bool  # whether always exactly so many, filled or idle: then its bits depend on nobody
    extras: Extras = field(default_factory=Extras)
    exam: Exam | None = None
    sketch: Sketch | None = None
    look_every: int = 0  # steps between two looks at exam and sketch; 0: there is none

    start: int = 0  # steps that were done before
    step: int = 0  # steps that are done
    losses: deque[tuple[int, float]] = field(default_factory=deque)  # (done, loss), oldest first
    looks: list[tuple[int, float]] = field(default_factory=list)  # (done, validation loss), oldest first
    best: Mapping[str, Array] = field(default_factory=dict)  # the weights of the best look, if they are to be kept
    drawn: deque[tuple[int, list[Tensor]]] = field(default_factory=deque)  # (done, latents of each prompt)
    snapshots: deque["Snapshot"] = field(default_factory=deque)  # to be kept, oldest first
    error: BaseException | None = None
    gone: bool = False  # it has no slot any more: finished, failed, or let go
    leaving: bool = False
    news: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        self.start = self.step = self.state.step if self.state is not None else 0
        if self.state is not None:
            self.looks, self.best = list(self.state.looks), self.state.best


@dataclass(frozen=True)
class Snapshot:
    """One job as it was after `step` steps: a copy of its row, on the device until somebody asks for its state.

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


class Cohort:
    """The slots of one shape on one base model. Used by the engine's thread alone."""

    def __init__(
        self, family: Family, base: Base, ports: Ports, shape: Shape, slots: int, compiler: Compiler | None = None
    ) -> None:
        self.family, self.base, self.ports, self.shape, self.compiler = family, base, ports, shape, compiler
        self.layout = ports.layout(shape.targets, shape.rank, dora=shape.dora)
        self.seats: list[Seat | None] = [None] * slots
        self._stack_up(slots)
        self._arrears: deque[tuple[list[tuple[Seat, int, int]], Told]] = deque()
        self._idle: Lot | None = None

    def _stack_up(self, slots: int) -> None:
        """An empty stack of so many slots, and the step that moves it."""
        base = self.base
        self.stack = STACKS[self.shape.optimizer](slots, self.layout, base.device)
        if self.compiler is not None:
            self.stack.compile(self.compiler)
        # Who does not share its steps has pictures or captions of several sizes: too many shapes to record.
        records = (
            base.device.type == "cuda"
            and self.family.shares_steps
            and not share.is_asked_for()
            and recording.is_allowed()
        )
        self._step = Step(self.family, base, self.ports, self.layout, self.stack, cuda_graph if records else None)

    def record_with(self, record: Record | None) -> None:
        """Record steps in another way; None: send each one by one. For checks and measurements."""
        self._step.record = record

    @property
    def is_recording(self) -> bool:
        """Whether any step is repeated from a recording by now."""
        return bool(self._step.recorded)

    def weights_of(self, job: Seat) -> Tensor:
        """A job's LoRA as one vector [P] on the device, as it is now."""
        return self.stack.masters[self.seats.index(job)].detach()

    def __len__(self) -> int:
        """How many jobs have a slot."""
        return sum(seat is not None for seat in self.seats)

    # ---- coming and going ----

    def seat(self, job: Seat) -> None:
        """Give a job the first free slot, at its checkpoint or at the start that its seed draws."""
        slot = self.seats.index(None)
        spec, state, layout = job.run.spec, job.state, self.layout
        begun = layout.begin(spec.seed, spec.rank)
        if state is None:
            self.stack.seat(slot, Terms.of(spec), begun)
        else:
            self.stack.seat(slot, Terms.of(spec), begun, updates=state.step)
            self.stack.load(slot, {"weights": state.weights, **state.kept})
        self.seats[slot] = job

    def unseat(self, job: Seat) -> None:
        """Empty a job's slot; the others' numbers do not change."""
        slot = self.seats.index(job)
        self.seats[slot] = None
        self.stack.clear(slot)

    def resize(self, slots: int) -> None:
        """Move all jobs to a stack of another number of slots, at least as many as there are jobs."""
        old, jobs = self.stack, [(slot, job) for slot, job in enumerate(self.seats) if job is not None]
        self.settle()
        self._stack_up(slots)
        self.seats, self._idle = [None] * slots, None
        for place, (slot, job) in enumerate(jobs):
            self.stack.copy(place, old, slot)
            self.seats[place] = job

    def snapshot(self, job: Seat) -> State:
        """A job's state as it is now, on the host."""
        self.settle()
        return self.copied(job).state()

    def copied(self, job: Seat) -> Snapshot:
        """A job as it is now. Does not wait for the device."""
        row = STACKS[self.shape.optimizer](1, self.layout, self.base.device)
        row.copy(0, self.stack, self.seats.index(job))
        rest = {
            "prediction": self.base.prediction,
            "looks": tuple(job.looks),
            "best": job.best,
            "precision": str(self.base.dtype).removeprefix("torch."),
            "compiled": self.compiler is not None,
        }
        return Snapshot(job.step, row, job.run.spec.rank, rest)

    def look(self, job: Seat) -> None:
        """Look at a job's held-out pictures and draw its prompts; a look may end it early. Nobody's numbers change."""
        slot, asked = self.seats.index(job), job.run.spec.validation
        worn, scale = self.stack.worn(slot), self.stack.scales[slot : slot + 1]
        with torch.no_grad():
            self.ports.pairs = self.layout.pairs(worn.unsqueeze(0), scale, self.base.dtype)
        try:
            if job.exam is not None:
                job.looks.append((job.step, validation_loss(self.family, self.base, job.exam)))
                if asked.keep_best and is_best(job.looks):
                    job.best = self.layout.read(worn, job.run.spec.rank)
                if is_over(job.looks, asked.patience):
                    job.total = job.step
            if job.sketch is not None:
                job.drawn.append((job.step, draw_sketches(self.family, self.base, job.sketch)))
        finally:
            self.ports.pairs = None

    # ---- a step ----

    def step(self) -> None:
        """One step of every seated job: draw, forward, backward, clip, AdamW."""
        lots, seated = self.gather()
        batch = Batch.of(lots, [seat is not None for seat in self.seats], self.base.device)
        rates = [0.0 if job is None else rate_at(job.run.spec, job.step, job.total) for job in self.seats]
        self.stack.set_rates(rates)
        means = self._step(batch)
        told = []
        for slot, job in seated:
            job.step += 1
            told.append((job, job.step, slot))
        self._arrears.append((told, Told(means)))
        keep = CUDA_ARREARS if self.base.device.type == "cuda" else 0
        while len(self._arrears) > keep:
            self._tell()

    def settle(self) -> None:
        """Tell the losses that are still in arrears."""
        while self._arrears:
            self._tell()

    def _tell(self) -> None:
        told, means = self._arrears.popleft()
        losses = means.read()
        for job, done, slot in told:
            job.losses.append((done, losses[slot]))

    def gather(self) -> tuple[list[Lot], list[tuple[int, Seat]]]:
        """The batch of every slot in order; idle ones get zeros of the same shape."""
        seated = [(slot, job) for slot, job in enumerate(self.seats) if job is not None]
        drawn = {slot: share.part(draw(self.family, self.base, job, job.step)) for slot, job in seated}
        if self._idle is None and len(seated) < len(self.seats):
            self._idle = next(iter(drawn.values())).empty()
        lots = [drawn.get(slot, self._idle) for slot in range(len(self.seats))]
        return [lot for lot in lots if lot is not None], seated
