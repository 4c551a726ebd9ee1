"""One step of all slots as a function of tensors, so that a GPU is told it once and then only asked to repeat it.

A CUDA graph (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs) is a recorded sequence of kernels over
fixed memory: draws, forward, backward, clip and optimizer of a whole step become one launch. What changes from step to
step (noise, times, captions, rates, who is there) lies in tensors that are overwritten before each; nothing in a step
asks the device for a number. On a CPU the same function is called each time.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.engine import share
from training.engine.adapters import Layout, Ports
from training.engine.draw import Lot
from training.engine.objective import losses
from training.engine.optimizer import Stack
from training.families.family import Base, Condition, Draw, Family

log = logging.getLogger(__name__)

# Steps of a shape that run before it is recorded: libraries choose their kernels and get their memory in the first.
WARM_STEPS = 3
# Shapes of one cohort that are recorded; there is more than one only where something changes while jobs train.
MOST_RECORDED = 4

# Makes of work over fixed tensors how to repeat it, and the tensor that it fills each time.
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


@dataclass(frozen=True)
class Batch:
    """All that a step is told, on the device: B samples, those of the first slot first."""

    made: Draw
    conditions: list[Condition]
    classes: list[Condition]  # of the class captions; empty where no prior is kept beside pictures
    active: Tensor  # [N] float32: 1 for a slot with a job, 0 for an idle one
    recalls: bool  # whether any sample is recalled

    @classmethod
    def of(cls, lots: Sequence[Lot], active: Sequence[bool], device: torch.device) -> "Batch":
        """From every slot's part, on the host, to the device, without waiting for it."""
        draws = [torch.cat(parts) for parts in zip(*(lot.made.parts for lot in lots), strict=True)]
        there = torch.tensor(active, dtype=torch.float32)
        if device.type == "cuda":
            draws, there = [part.pin_memory() for part in draws], there.pin_memory()
        return cls(
            Draw(*draws).to(device),
            [one for lot in lots for one in lot.conditions],
            [one for lot in lots for one in lot.classes],
            there.to(device, non_blocking=True),
            recalls=any(bool(lot.made.recalled.any()) for lot in lots),
        )

    @property
    def tensors(self) -> list[Tensor]:
        """All of its tensors, in order."""
        told = [value for one in (*self.conditions, *self.classes) for value in one.values()]
        return [*self.made.parts, *told, self.active]

    def copy(self) -> "Batch":
        """The same in memory of its own."""
        conditions, classes = (
            [{name: value.clone() for name, value in one.items()} for one in told]
            for told in (self.conditions, self.classes)
        )
        made = Draw(*(part.clone() for part in self.made.parts))
        return Batch(made, conditions, classes, self.active.clone(), self.recalls)


class Step:
    """The step of one stack of slots. Used by the engine's thread alone."""

    def __init__(
        self, family: Family, base: Base, ports: Ports, layout: Layout, stack: Stack, record: Record | None
    ) -> None:
        """record: how steps are recorded; None if each is to be sent anew."""
        self.family, self.base, self.ports, self.layout, self.stack = family, base, ports, layout, stack
        self.record = record
        self.recorded: dict[Any, tuple[Batch, Callable[[], None], Tensor]] = {}
        self._run: dict[Any, int] = {}  # steps of each shape so far

    def __call__(self, batch: Batch) -> Tensor:
        """Every job's mean loss [N], on the device; the stack is one update further."""
        if self.record is None:
            return self._step(batch)
        shape = self._shape(batch)
        if shape not in self.recorded:
            self._run[shape] = self._run.get(shape, 0) + 1
            if self._run[shape] <= WARM_STEPS or len(self.recorded) >= MOST_RECORDED or not self._learn(shape, batch):
                return self._step(batch)
        held, repeat, means = self.recorded[shape]
        torch._foreach_copy_(held.tensors, batch.tensors)
        repeat()
        return means.clone()

    def _shape(self, batch: Batch) -> Any:
        """What decides which operations a step is made of."""
        sizes = tuple(tuple(part.shape) for part in batch.tensors)
        is_checkpointing = bool(self.base.denoiser.is_gradient_checkpointing)
        return sizes, batch.recalls, self.stack.averages is None, is_checkpointing

    def _learn(self, shape: Any, batch: Batch) -> bool:
        """Record the step over a copy of `batch`; False if that cannot be, and then never again."""
        assert self.record is not None  # noqa: S101 - looked at by who calls
        held = batch.copy()
        try:
            repeat, means = self.record(lambda: self._step(held))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.warning("steps are sent one by one: they cannot be recorded as a CUDA graph (%s)", str(error)[:200])
            self.record, self.stack.masters.grad = None, None
            return False
        self.recorded[shape] = held, repeat, means
        return True

    def _step(self, batch: Batch) -> Tensor:
        """Forward, backward, clip, optimizer."""
        stack, slots = self.stack, len(batch.active)
        self.ports.pairs = self.layout.pairs(stack.masters, stack.scales, self.base.dtype)
        try:
            found = losses(
                self.family, self.base, self.ports, batch.made, batch.conditions, batch.classes, recalls=batch.recalls
            )
            means = found.view(slots, -1).mean(1)
            # Each job's own gradient, as if it were alone; an idle slot has none.
            torch.autograd.backward(means, batch.active)
        finally:
            self.ports.pairs = None
        means = means.detach()
        share.average(stack.masters.grad, means)  # with the other processes of a training that is shared
        stack.step()
        stack.average()
        return means


class Told:
    """Losses on their way to the host, for which nobody waits until they are read."""

    def __init__(self, means: Tensor) -> None:
        self._held = means
        self._there: Any = None
        if means.device.type == "cuda":
            self._held = torch.empty(means.shape, dtype=means.dtype, pin_memory=True)
            self._held.copy_(means, non_blocking=True)
            self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._there.record()

    def read(self) -> list[float]:
        """Every slot's."""
        if self._there is not None:
            self._there.synchronize()
        losses: list[float] = self._held.tolist()
        return losses


def cuda_graph(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Record `work` as a CUDA graph. Other threads may use the device meanwhile: they encode pictures."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        means = work()
    return graph.replay, means
