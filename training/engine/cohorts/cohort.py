"""Jobs of one shape in the slots of one stack: they join, step together, and leave."""

from collections import deque

import torch
from torch import Tensor

from training.engine import distributed
from training.engine.cohorts.job_batch import JobBatch, draw
from training.engine.cohorts.slot_job import Shape, SlotJob, Snapshot
from training.engine.layout import LoRA
from training.engine.lora_layers import LoRALayers
from training.engine.optimizers.by_name import OPTIMIZERS
from training.engine.optimizers.schedule import rate_at
from training.engine.optimizers.stack import OptimizerParams, Stack
from training.engine.recorder import Record, Recorder
from training.engine.state import State
from training.engine.step import Batch, PendingLosses, Step
from training.families.family import Base, FamilyCode

# Losses that may be on their way from a GPU: reading one sooner would make the host wait for the device.
CUDA_PENDING = 2
LADDER = (1, 2, 4, 8, 16, 32)  # the numbers of slots that a cohort may have


class Cohort:
    """The slots of one shape on one base model. Used by the engine's thread alone."""

    def __init__(
        self,
        family: FamilyCode,
        base: Base,
        layers: LoRALayers,
        shape: Shape,
        slots: int,
        recorder: Recorder | None = None,
    ) -> None:
        """recorder: records steps as CUDA graphs; None: run them eagerly."""
        self.family, self.base, self.layers, self.shape, self.recorder = family, base, layers, shape, recorder
        self.layout = layers.layout(shape.targets, shape.ranks, dora=shape.dora, text_encoder=shape.text_encoder)
        self.jobs: list[SlotJob | None] = [None] * slots  # by slot
        self._use(OPTIMIZERS[shape.optimizer](slots, self.layout, base.device))
        self._pending: deque[tuple[list[tuple[SlotJob, int, int]], PendingLosses]] = deque()
        self._idle: JobBatch | None = None
        self.idle_steps = 0  # steps since half the slots have been idle

    def _use(self, stack: Stack) -> None:
        """Use this stack from now on."""
        self.stack = stack
        stack.is_scaled = self.base.dtype == torch.float16
        # In a family that does not share steps, captions have many lengths: too many shapes to record.
        recorder = self.recorder if self.family.shares_steps else None
        self._step = Step(self.family, self.base, self.layers, self.layout, stack, recorder)

    def record_with(self, record: Record | None) -> None:
        """Record steps with `record`; None: run them eagerly. For checks and measurements."""
        self._step.recorder = None if record is None else Recorder(record)

    @property
    def is_recording(self) -> bool:
        """Whether any step has been recorded."""
        return bool(self._step.recorder)

    def weights_of(self, job: SlotJob) -> Tensor:
        """A job's current LoRA as one vector [P] on the device, not copied."""
        stack, slot = self._row(job)
        return stack.masters[slot].detach()

    def loras_of(self, job: SlotJob) -> tuple[Tensor, list[LoRA | None]]:
        """A copy of the weights [P] that a job would deliver now, and their LoRAs by place."""
        stack, slot = self._row(job)
        weights, scale = stack.effective_weights(slot).clone(), stack.scales[slot : slot + 1].clone()
        with torch.no_grad():
            return weights, self.layout.loras(weights.unsqueeze(0), scale, self.base.dtype)

    def _row(self, job: SlotJob) -> tuple[Stack, int]:
        """The stack that has a job's numbers, and their row in it."""
        return (self.stack, self.jobs.index(job)) if job.held_row is None else (job.held_row, 0)

    def __len__(self) -> int:
        """How many jobs have a slot."""
        return sum(job is not None for job in self.jobs)

    # ---- joining and leaving ----

    def seat(self, job: SlotJob) -> None:
        """Give a job the first free slot, with its checkpoint or the initial weights that its seed draws."""
        slot = self.jobs.index(None)
        spec, state, layout = job.run.spec, job.state, self.layout
        begun = layout.begin(spec.seed, spec.ranks)
        if state is None:
            self.stack.seat(slot, OptimizerParams.of(spec), begun)
        else:
            self.stack.seat(slot, OptimizerParams.of(spec), begun, updates=state.step)
            self.stack.load(slot, {"weights": state.weights, **state.kept})
        self.jobs[slot] = job

    def unseat(self, job: SlotJob) -> None:
        """Empty a job's slot. The numbers of the others do not change."""
        slot = self.jobs.index(job)
        self.jobs[slot], job.held_row = None, None
        self.stack.clear(slot)

    def resize(self, slots: int) -> None:
        """Move all jobs to a stack with another number of slots, at least as many as there are jobs.

        If this raises because memory runs out, the cohort is unchanged.
        """
        self.read_losses()
        stack = OPTIMIZERS[self.shape.optimizer](slots, self.layout, self.base.device)
        jobs = [(slot, job) for slot, job in enumerate(self.jobs) if job is not None]
        for place, (slot, _) in enumerate(jobs):
            stack.copy(place, self.stack, slot)
        if self.recorder is not None:
            self.recorder.drop(id(self._step))
        self._use(stack)
        self.jobs = [job for _, job in jobs] + [None] * (slots - len(jobs))

    def snapshot(self, job: SlotJob) -> State:
        """A job's current state, on the host. Waits for the device."""
        self.read_losses()
        return self.copied(job).state()

    def copied(self, job: SlotJob) -> Snapshot:
        """A copy of a job's current state, on the device. Does not wait for the device."""
        rest = {
            "prediction": self.base.prediction,
            "validation_losses": tuple(job.validation_losses),
            "best": job.best,
            "precision": str(self.base.dtype).removeprefix("torch."),
            "quantisation": self.base.quantisation,
        }
        return Snapshot(job.step, self._copied_row(job), job.run.spec.ranks, rest)

    def _copied_row(self, job: SlotJob) -> Stack:
        row = OPTIMIZERS[self.shape.optimizer](1, self.layout, self.base.device)
        row.copy(0, *self._row(job))
        return row

    # ---- a step ----

    @property
    def ready(self) -> int:
        """The number of jobs that take part in the next step: those with a slot that are not held."""
        return sum(job is not None and not job.is_held for job in self.jobs)

    def step(self) -> None:
        """One step of every job that is not held: draw, forward, backward, clip, optimizer. There must be one."""
        self._move_held_rows()
        parts, seated = self.gather()
        stepping = dict(seated)
        batch = Batch.of(parts, [slot in stepping for slot in range(len(self.jobs))], self.base.device)
        rates = {slot: rate_at(job.run.spec, job.step, job.total) for slot, job in seated}
        self.stack.set_rates([rates.get(slot, 0.0) for slot in range(len(self.jobs))])
        loss = self._step(batch)
        stepped = []
        for slot, job in seated:
            job.step += 1
            stepped.append((job, job.step, slot))
        self._pending.append((stepped, PendingLosses(loss)))
        keep = CUDA_PENDING if self.base.device.type == "cuda" else 0
        while len(self._pending) > keep:
            self._read_oldest()

    def _move_held_rows(self) -> None:
        """Move the rows of held jobs out of the stack, and those of jobs that are no longer held back into it."""
        for slot, job in enumerate(self.jobs):
            if job is None or job.is_held == (job.held_row is not None):
                continue
            if job.is_held:
                job.held_row = self._copied_row(job)
                self.stack.clear(slot)
            else:
                assert job.held_row is not None  # noqa: S101 - as the job was held
                self.stack.copy(slot, job.held_row, 0)
                job.held_row = None

    def read_losses(self) -> None:
        """Give every job the losses that are still on their way. Waits for the device."""
        while self._pending:
            self._read_oldest()

    def _read_oldest(self) -> None:
        stepped, pending = self._pending.popleft()
        losses = pending.to_list()
        for job, done, slot in stepped:
            job.losses.append((done, losses[slot]))

    def gather(self) -> tuple[list[JobBatch], list[tuple[int, SlotJob]]]:
        """The batch of every slot in order, and the jobs that step, with their slots. Idle slots get zeros."""
        seated = [(slot, job) for slot, job in enumerate(self.jobs) if job is not None and not job.is_held]
        drawn = {slot: distributed.part(draw(self.family, self.base, job, job.step)) for slot, job in seated}
        if self._idle is None and len(seated) < len(self.jobs):
            self._idle = next(iter(drawn.values())).empty()
        parts = [drawn.get(slot, self._idle) for slot in range(len(self.jobs))]
        return [part for part in parts if part is not None], seated
