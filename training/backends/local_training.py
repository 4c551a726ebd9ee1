"""One training on an engine, run from the thread of its job: it reports losses, and saves checkpoints and previews."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version

import numpy as np

from core.errors import DeviceLost, HandOver, ImprintError, LossNotFinite, WorkerLost
from training.backends import checkpoint, resident
from training.backends.encoded_dataset import EncodedDataset, encode_dataset, split_held_out
from training.backends.encodings import Encodings
from training.backends.export import serialize_lora
from training.backends.meter import Meter
from training.device import max_slots
from training.engine.cohorts.slot_job import Shape, SlotJob
from training.engine.engine import Engine
from training.engine.faults import is_out_of_memory
from training.engine.randomness import SampleOrder
from training.engine.state import State
from training.families.latents import decoded
from training.lora import metadata as lora_metadata
from training.memory_plan import Plan, padded_ranks
from training.ports import TrainRun

log = logging.getLogger(__name__)

_CHECK_EVERY_S = 0.1  # how often the caller's control is checked
# Each takes memory of the device: if more wait for a slow store, only the newest are saved, unless the owner keeps all.
_MAX_SNAPSHOTS = 4


class LocalTraining:
    """One training, from its encoded pictures to its last checkpoint."""

    def __init__(
        self, run: TrainRun, engine: Engine, identity: Mapping[str, str], total: int, state: State | None,
        plan: Plan | None = None,
    ) -> None:  # fmt: skip
        """Encode the pictures and captions that are not cached.

        identity: of the job, for its checkpoints. total: steps. state: the checkpoint to resume from. plan: how the job
        fits into the device's memory; None: it is not limited. Raises ImageInvalid, BaseModelUnavailable, HandOver (see
        Engine.parked) and what `run.control.check` raises.
        """
        self._run, self._engine, self._identity, self._total = run, engine, identity, total
        for warning in engine.base.warnings:
            log.warning("job %s: %s", run.job_id, warning)
        dataset = self._encode()
        for note in dataset.notes:
            run.note(note)
        if plan is not None and plan.checkpointing and not engine.base.is_gradient_checkpointing:
            with engine.paused():
                engine.base.checkpoint_gradients(True)
        order = SampleOrder(split_held_out(run.examples, run.spec)[0], run.spec.batch_size, run.spec.seed)
        self.job = _slot_job(run, engine, dataset, order, total, state, plan)
        self._keep_every = checkpoint.LASTING_EPOCHS * order.steps_per_epoch
        self._saved = self._done = self.job.start  # the step of the last checkpoint; of the last loss
        self._state: State | None = None  # of the last snapshot
        self._validations = 0  # validation losses passed to the meter
        loss = state.loss if state is not None else 0.0
        self._meter = Meter(run.control, start=self.job.start, total=total, loss=loss)

    def _encode(self) -> EncodedDataset:
        """Encode what the recipe needs. If memory runs out, try again with the device to itself."""
        run, engine = self._run, self._engine
        encodings = Encodings(run.encodings, f"{self._identity['base']} {engine.base.dtype}")
        given = (engine.family, engine.base, encodings, run.spec, run.examples, run.control.check)
        try:
            return encode_dataset(*given)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        log.warning("job %s: out of memory while encoding; trying again while no job steps", run.job_id)
        with engine.parked():
            return encode_dataset(*given)

    def train(self) -> State:
        """Do all remaining steps; returns the state after the last one, which is saved as a checkpoint too.

        Raises LossNotFinite, WorkerLost, DeviceLost, the error of a step, and what `run.control.check` raises.
        """
        job, control = self.job, self._run.control
        with resident.device_use(control.check):
            self._engine.join(job)  # loads the denoiser
        try:
            while not self._is_gone():
                job.news.wait(_CHECK_EVERY_S)
                job.news.clear()
                self._process_results()
                control.check()
        except HandOver:
            self._leave()
            if job.error is None or isinstance(job.error, HandOver):
                self._process_results()
            raise
        except BaseException:
            self._leave(is_abandoned=True)
            raise
        if isinstance(job.error, DeviceLost):
            raise job.error  # the results are on that device
        self._process_results()
        if job.error is not None:
            raise job.error
        assert self._state is not None  # noqa: S101 - a job without an error has a last snapshot
        return self._state

    def _leave(self, *, is_abandoned: bool = False) -> None:
        """Leave the engine. Waits for the current step, and for an evaluation in progress unless abandoned."""
        self._engine.leave(self.job, is_abandoned=is_abandoned)
        with suppress(WorkerLost):  # then there is nothing to wait for
            while not self._is_gone():
                self.job.news.wait(1.0)
                self.job.news.clear()

    def _is_gone(self) -> bool:
        """Whether the engine has released the job. Raises WorkerLost if the engine's thread ended without doing so."""
        is_alive = self._engine.is_alive  # read first: a thread that ends releases every job before
        if not self.job.gone and not is_alive:
            raise WorkerLost("the thread that trains on this worker has ended; another worker continues")
        return self.job.gone

    # ---- results of the engine ----

    def _process_results(self) -> None:
        """Report losses, and save checkpoints and previews."""
        self._save_previews()
        snapshots = self.job.snapshots
        while snapshots and snapshots[0].step <= self._last_loss_step():
            snapshot = snapshots.popleft()
            self._save_previews()  # before the checkpoint: a job that resumes from it draws no earlier previews
            self._read_losses(snapshot.step)
            is_due = self._run.loras is not None or len(snapshots) < _MAX_SNAPSHOTS
            if is_due and snapshot.step > self._saved:
                self._save_checkpoint(replace(snapshot.state(), loss=self._meter.loss_after(snapshot.step)))
        self._read_losses(self._last_loss_step())
        self._meter.report(self._done, is_end=self.job.gone and self._done == self.job.total)

    def _save_previews(self) -> None:
        """Decode and save the previews that the engine has drawn."""
        previews, engine = self._run.previews, self._engine
        while self.job.previews and previews is not None:
            step, latents = self.job.previews.popleft()
            with resident.device_use(self._run.control.check):
                pictures = decoded(engine.family, engine.base, latents)
            try:
                for prompt, picture in enumerate(pictures):
                    previews.save(step, prompt, picture)
            except (OSError, ImprintError) as error:
                log.warning("the previews of step %d could not be saved, training continues: %s", step, error)

    def _last_loss_step(self) -> int:
        """The last step whose loss has arrived: on a GPU, losses arrive later than snapshots."""
        losses = self.job.losses
        return losses[-1][0] if losses else self._done

    def _read_losses(self, until: int) -> None:
        """Pass the losses up to step `until` to the meter, and all validation losses. Raises LossNotFinite."""
        for step, loss in self.job.validation_losses[self._validations :]:
            self._meter.add_validation_loss(step, loss)
            self._validations += 1
        losses = self.job.losses
        while losses and losses[0][0] <= until:
            self._done, loss = losses.popleft()
            self._meter.add(self._done, loss)

    def _save_checkpoint(self, state: State) -> None:
        """Save a checkpoint. Raises LossNotFinite if its weights are not finite: it would be useless."""
        if not all(np.isfinite(weights).all() for weights in state.weights.values()):
            raise LossNotFinite(
                f"the weights after step {state.step} of {self._total} are not finite", {"step": state.step}
            )
        if checkpoint.save_checkpoint(self._run.checkpoints, state, self._identity, _versions(), self._keep_every):
            self._saved = state.step
        self._save_lora(state)
        self._state = state

    def _save_lora(self, state: State) -> None:
        """Save the LoRA file of a checkpoint for the owner. If the store fails, only log a warning."""
        job, run = self.job, self._run
        if run.loras is None or state.step == self._total or state.step % job.checkpoint_every:
            return
        validation = next((one for one in state.validation_losses if one[0] == state.step), None)
        data, _ = serialize_lora(run, replace(state, best={}), self._identity, validation)
        try:
            run.loras.save(state.step, data)
        except (OSError, ImprintError) as error:
            log.warning("the LoRA file of step %d could not be saved, training continues: %s", state.step, error)


def _slot_job(
    run: TrainRun, engine: Engine, dataset: EncodedDataset, order: SampleOrder, total: int, state: State | None,
    plan: Plan | None,
) -> SlotJob:  # fmt: skip
    """The job as the engine trains it."""
    spec, device_type = run.spec, engine.base.device.type
    is_one_size = len({moments.shape for moments in dataset.moments}) == 1 and not dataset.scales
    is_shared = engine.family.shares_steps and is_one_size
    slots = run.slots or max_slots(device_type)
    if plan is not None and not run.deterministic:  # a deterministic step has exactly the requested slots
        slots = min(slots, plan.slots)
    preview_prompts = dataset.preview_prompts if run.previews is not None else None
    is_evaluated = dataset.validation_set is not None or preview_prompts is not None
    return SlotJob(
        run,
        total,
        order,
        dataset.moments,
        dataset.conditions,
        Shape(
            tuple(dataset.moments[0].shape) if is_shared else (id(order),),
            spec.batch_size,
            padded_ranks(spec.ranks),
            has_prior=spec.objective.prior_weight > 0,
            targets=spec.adapter.targets,
            dora=spec.adapter.dora,
            text_encoder=spec.adapter.text_encoder,
            optimizer=spec.optimizer,
        ),
        state,
        checkpoint_every=run.checkpoint_every_epochs * order.steps_per_epoch,
        slots=slots if is_shared else 1,
        is_fixed=device_type != "cuda" or run.deterministic,
        extras=dataset.extras,
        scales=dataset.scales,
        validation_set=dataset.validation_set,
        preview_prompts=preview_prompts,
        evaluate_every=spec.validation.every_epochs * order.steps_per_epoch if is_evaluated else 0,
    )


def _versions() -> dict[str, str]:
    """The versions of the software that wrote a checkpoint, for information."""
    return {"imprint": lora_metadata.own_version(), **{name: version(name) for name in ("torch", "diffusers", "peft")}}
