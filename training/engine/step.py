"""One step of all slots as a function over fixed tensors, so that a GPU can record it and repeat it.

What changes from step to step (noise, times, captions, rates, which slots have a job) is in tensors that are
overwritten before each step. Nothing in a step reads a number back from the device. On a CPU the same function runs
each time.
"""

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.engine import distributed
from training.engine.cohorts.job_batch import JobBatch
from training.engine.layout import Layout
from training.engine.lora_layers import LoRALayers
from training.engine.objective import losses
from training.engine.optimizers.stack import Stack
from training.engine.recorder import EmptyRecording, Recorder, Recording
from training.families.family import Base, Condition, Draw, FamilyCode

log = logging.getLogger(__name__)

# Eager steps of each shape before it is recorded: in the first ones, libraries choose kernels and allocate memory.
WARM_STEPS = 3


@dataclass(frozen=True)
class Batch:
    """The inputs of a step on the device: B samples, those of the first slot first."""

    made: Draw
    conditions: list[Condition]
    classes: list[Condition]  # of the class captions; empty without a prior loss
    active: Tensor  # [N] float32: 1 for a slot with a job, 0 for an idle one
    recalls: bool  # whether any sample trains the prior instead of its picture

    @classmethod
    def of(cls, parts: Sequence[JobBatch], active: Sequence[bool], device: torch.device) -> "Batch":
        """Copy the parts of all slots from the host to the device. Does not wait for it."""
        draws = [torch.cat(values) for values in zip(*(part.made.parts for part in parts), strict=True)]
        filled = torch.tensor(active, dtype=torch.float32)
        if device.type == "cuda":
            draws, filled = [value.pin_memory() for value in draws], filled.pin_memory()
        return cls(
            Draw(*draws).to(device),
            [one for part in parts for one in part.conditions],
            [one for part in parts for one in part.classes],
            filled.to(device, non_blocking=True),
            recalls=any(bool(part.made.recalled.any()) for part in parts),
        )

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in order."""
        conditions = [value for one in (*self.conditions, *self.classes) for value in one.values()]
        return [*self.made.parts, *conditions, self.active]

    def copy(self) -> "Batch":
        """A copy with its own memory."""
        conditions, classes = (
            [{name: value.clone() for name, value in one.items()} for one in group]
            for group in (self.conditions, self.classes)
        )
        made = Draw(*(part.clone() for part in self.made.parts))
        return Batch(made, conditions, classes, self.active.clone(), self.recalls)


class Step:
    """The step of one stack of slots. Used by the engine's thread alone."""

    def __init__(
        self,
        family: FamilyCode,
        base: Base,
        layers: LoRALayers,
        layout: Layout,
        stack: Stack,
        recorder: Recorder | None,
    ) -> None:
        """recorder: records steps as CUDA graphs; None: run them eagerly."""
        self.family, self.base, self.layers, self.layout, self.stack = family, base, layers, layout, stack
        self.recorder = recorder
        self._seen: dict[Any, int] = {}  # eager steps of each shape so far

    def __call__(self, batch: Batch) -> Tensor:
        """Do one step. Updates the stack; returns the mean loss of each slot, [N], on the device."""
        if self.recorder is None:
            return self._step(batch)
        key = self._key(batch)
        recording = self.recorder.get(key)
        if recording is None:
            self._seen[key] = self._seen.get(key, 0) + 1
            return self._step(batch) if self._seen[key] <= WARM_STEPS else self._record(key, batch)
        torch._foreach_copy_(recording.inputs.tensors, batch.tensors)
        recording.repeat()
        return recording.losses.clone()

    def _key(self, batch: Batch) -> Hashable:
        """Everything that decides which operations a step consists of."""
        sizes = tuple(tuple(part.shape) for part in batch.tensors)
        return id(self), sizes, batch.recalls, self.stack.averages is None, self.base.is_gradient_checkpointing

    def _record(self, key: Hashable, batch: Batch) -> Tensor:
        """Record the step over a copy of `batch`, and do it. If it cannot be recorded, all later steps are eager."""
        assert self.recorder is not None  # noqa: S101 - checked by the caller
        inputs = batch.copy()
        try:
            repeat, loss = self.recorder.record(lambda: self._step(inputs))
            updates = self.stack.updates.clone()
            repeat()
            if torch.equal(self.stack.updates, updates):
                raise EmptyRecording("the recording is empty")
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.warning("steps run eagerly: they cannot be recorded as a CUDA graph (%s)", str(error)[:200])
            self.recorder, self.stack.masters.grad = None, None
        else:
            self.recorder.keep(key, Recording(inputs, repeat, loss))
            return loss.clone()
        return self._step(batch)

    def _step(self, batch: Batch) -> Tensor:
        """Forward, backward, clip, optimizer."""
        stack, slots = self.stack, len(batch.active)
        loras = self.layout.loras(stack.masters, stack.scales, self.base.dtype)
        with self.layers.applying(loras):
            per_sample = losses(
                self.family, self.base, self.layers, batch.made, batch.conditions, batch.classes, recalls=batch.recalls
            )
            loss = per_sample.view(slots, -1).mean(1)
            # The gradient of each job is its own, as if it were alone; that of an idle slot is zero.
            factors = batch.active * stack.loss_scales.squeeze(1) if stack.is_scaled else batch.active
            torch.autograd.backward(loss, factors)
        loss = loss.detach()
        assert stack.masters.grad is not None  # noqa: S101 - set by the backward pass
        distributed.average(stack.masters.grad, loss)
        stack.step()
        stack.average()
        return loss


class PendingLosses:
    """Losses on their way to the host. Only reading them waits for the device."""

    def __init__(self, loss: Tensor) -> None:
        self._held = loss
        self._arrived: Any = None
        if loss.device.type == "cuda":
            self._held = torch.empty(loss.shape, dtype=loss.dtype, pin_memory=True)
            self._held.copy_(loss, non_blocking=True)
            self._arrived = torch.cuda.current_stream(loss.device).record_event()

    def to_list(self) -> list[float]:
        """The loss of each slot. Waits for the device."""
        if self._arrived is not None:
            self._arrived.synchronize()
        found: list[float] = self._held.tolist()
        return found
