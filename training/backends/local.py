"""The local backend: one training on this worker's device, beside others in the same engine.

Every number that chance decides is a pure function of (job seed, step), and a checkpoint holds the rest. So on a CPU a
training that was killed and resumed writes the same file, byte for byte, as one that was left alone.
"""

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from core.errors import (
    BaseModelUnavailable,
    DeviceLost,
    HandOver,
    ImprintError,
    LossNotFinite,
    OutOfMemory,
    StoreUnavailable,
    WorkerLost,
)
from training import device_failure, families, memory_plan
from training.backends import checkpoint, resident
from training.backends.agreement import Agreement, agreed
from training.backends.encoded_dataset import EncodedDataset, encode_dataset, split_held_out
from training.backends.encodings import Encodings
from training.backends.meter import Meter
from training.device import choose, configure, max_slots
from training.engine import distributed
from training.engine.engine import Engine
from training.engine.faults import is_device_error, is_out_of_memory
from training.engine.layout import matrices_of
from training.engine.randomness import SampleOrder
from training.engine.slot_job import Shape, SlotJob
from training.engine.state import State
from training.engine.validation import is_over
from training.families.family import Family, Where
from training.families.fingerprint import fingerprint
from training.families.latents import decoded
from training.families.parts import locate, weights_bytes
from training.lora import file as lora_file
from training.lora import metadata as lora_metadata
from training.memory_plan import Plan, padded, share_of
from training.ports import TrainResult, TrainRun
from training.spec import TrainSpec, is_distilled

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.1
_MOST_WAITING = 4  # checkpoints: each holds memory of the device


def train(run: TrainRun) -> TrainResult:
    """Train one LoRA and write its file to `run.out`, whole or not at all.

    Goes on from the highest sound checkpoint; with one at the last step it only writes the file. Raises
    BaseModelUnavailable, OutOfMemory, LossNotFinite, ImageInvalid, StoreUnavailable (the file cannot be written), and
    whatever `run.control.check` raises.
    """
    device = choose(run.device)
    configure(device, deterministic=run.deterministic)
    family = families.find(run.spec.family)
    folder = locate(run.base_model, family.parts)
    total = run.spec.steps(len(run.examples))
    identity = _identity(run, family, folder)
    found = checkpoint.load_latest(run.checkpoints, identity, total)
    agreement = agreed(run, device, weights_bytes(folder, family.parts[0]), found)
    state, seconds = agreement.state, 0.0
    resumed_from = state.step if state is not None else 0
    if state is None or (state.step < total and not is_over(state.looks, run.spec.validation.patience)):
        plan, agreement = _planned(run, family, folder, device, agreement)
        state = agreement.state
        resumed_from = state.step if state is not None else 0
        if state is not None:
            log.info("job %s goes on from step %d of %d", run.job_id, state.step, total)
        quantisation = plan.quantisation if plan is not None else agreement.quantisations[0]
        where = Where(folder, device, agreement.dtype, run.training_adapter, _is_distilled(run), quantisation)
        with device_errors(run), resident.shared_engine(family, where, identity["base"], run.control.check) as engine:
            trainee = Trainee(run, engine, identity, total, state, plan)
            begun = time.monotonic()
            state = trainee.learn()
            seconds = time.monotonic() - begun
    return _export(run, state, identity, resumed_from, seconds, device)


class Trainee:
    """One training on an engine, watched over from the thread that asked for it: losses, checkpoints, leaving."""

    def __init__(
        self, run: TrainRun, engine: Engine, identity: dict[str, str], total: int, state: State | None,
        plan: Plan | None = None,
    ) -> None:  # fmt: skip
        """plan: how the job fits into the device's memory; None where that is not asked."""
        self.run, self.engine, self.identity, self.total = run, engine, identity, total
        base = engine.base
        for warning in base.warnings:
            log.warning("job %s: %s", run.job_id, warning)
        encodings = Encodings(run.encodings, f"{identity['base']} {base.dtype}")
        spec = run.spec
        material = self._encoded(encodings)
        moments, looks = material.moments, spec.validation
        if plan is not None and plan.checkpointing and not base.is_gradient_checkpointing:
            with engine.paused():
                base.checkpoint_gradients(True)
        slots = run.slots or max_slots(base.device.type)
        if plan is not None and not run.deterministic:  # a deterministic step has as many slots as it is told
            slots = min(slots, plan.slots)
        order = SampleOrder(split_held_out(run.examples, spec)[0], spec.batch_size, spec.seed)
        is_shared = engine.family.shares_steps and len({one.shape for one in moments}) == 1
        preview_prompts = material.preview_prompts if run.previews is not None else None
        is_evaluated = material.validation_set is not None or preview_prompts is not None
        self.job = SlotJob(
            run,
            total,
            order,
            moments,
            material.conditions,
            Shape(
                tuple(moments[0].shape) if is_shared else (id(self),),
                spec.batch_size,
                padded(spec.rank),
                has_prior=spec.objective.prior_weight > 0,
                targets=spec.adapter.targets,
                dora=spec.adapter.dora,
                optimizer=spec.optimizer,
            ),
            state,
            checkpoint_every=run.checkpoint_every_epochs * order.steps_per_epoch,
            slots=slots if is_shared else 1,
            is_fixed=base.device.type != "cuda" or run.deterministic,
            extras=material.extras,
            validation_set=material.validation_set,
            preview_prompts=preview_prompts,
            evaluate_every=looks.every_epochs * order.steps_per_epoch if is_evaluated else 0,
        )
        self.lasting = checkpoint.LASTING_EPOCHS * order.steps_per_epoch
        self.kept = self.done = self.job.start
        self.state: State | None = None
        self.looked = 0  # looks that were told
        loss = state.loss if state is not None else 0.0
        self.meter = Meter(run.control, start=self.job.start, total=total, loss=loss)

    def _encoded(self, encodings: Encodings) -> EncodedDataset:
        """Encode what the recipe asks for. If memory runs out, once more with the device to itself."""
        run, engine = self.run, self.engine
        try:
            return encode_dataset(engine.family, engine.base, encodings, run.spec, run.examples, run.control.check)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        log.warning("job %s: out of memory while encoding; once more while no job steps", run.job_id)
        with engine.paused(), engine.base.parked():
            return encode_dataset(engine.family, engine.base, encodings, run.spec, run.examples, run.control.check)

    def learn(self) -> State:
        """All steps that are left; gives the state after the last one, which is kept as a checkpoint too."""
        job, control = self.job, self.run.control
        self.engine.join(job)
        try:
            while not self._is_gone():
                job.news.wait(_LOOK_EVERY_S)
                job.news.clear()
                self._note()
                control.check()
        except HandOver:
            self._leave()
            if job.error is None:
                self._note()
            raise
        except BaseException:
            self._leave(is_abandoned=True)
            raise
        if isinstance(job.error, DeviceLost):
            raise job.error  # what the engine left here is on that device
        self._note()
        if job.error is not None:
            raise job.error
        assert self.state is not None  # noqa: S101 - who left without an error has finished
        return self.state

    def _leave(self, *, is_abandoned: bool = False) -> None:
        """Go from the slot, and wait until that is done: for an evaluation that is under way, and at most one step.
        Without the evaluation if nothing more is wanted of the job.
        """
        self.engine.leave(self.job, is_abandoned=is_abandoned)
        with suppress(WorkerLost):  # then nothing is left to wait for
            while not self._is_gone():
                self.job.news.wait(1.0)
                self.job.news.clear()

    def _is_gone(self) -> bool:
        """Whether the engine is done with the job. Raises WorkerLost if its thread has ended without being so."""
        is_alive = self.engine.is_alive  # looked at first: a thread that ends by itself has ended every job before
        if not self.job.gone and not is_alive:
            raise WorkerLost("the thread that trains on this worker has ended; another worker goes on")
        return self.job.gone

    def _note(self) -> None:
        """Read what the engine left here: losses, told now and then, and a state to keep."""
        self._show()
        snapshots = self.job.snapshots
        while snapshots and snapshots[0].step <= self._told():
            snapshot = snapshots.popleft()
            self._show()  # before the checkpoint is kept: a job that goes on from it draws no earlier picture again
            self._read(snapshot.step)
            is_due = self.run.loras is not None or len(snapshots) < _MOST_WAITING  # else, with a slow store, the newest
            if is_due and snapshot.step > self.kept:
                self._keep(replace(snapshot.state(), loss=self.meter.loss_after(snapshot.step)))
        self._read(self.total)
        self.meter.report(self.done, is_end=self.job.gone and self.done == self.job.total)

    def _show(self) -> None:
        """Decode and show the previews that the engine drew."""
        previews, engine = self.run.previews, self.engine
        while self.job.drawn and previews is not None:
            step, drawn = self.job.drawn.popleft()
            pictures = decoded(engine.family, engine.base, drawn)
            try:
                for prompt, picture in enumerate(pictures):
                    previews.save(step, prompt, picture)
            except (OSError, ImprintError) as error:
                log.warning("the previews of step %d could not be kept, training goes on: %s", step, error)

    def _told(self) -> int:
        """The last step whose loss is here: on a GPU losses come later than what is made of them."""
        losses = self.job.losses
        return losses[-1][0] if losses else self.done

    def _read(self, until: int) -> None:
        for step, loss in self.job.looks[self.looked :]:
            self.meter.add_validation_loss(step, loss)
            self.looked += 1
        losses = self.job.losses
        while losses and losses[0][0] <= until:
            self.done, loss = losses.popleft()
            self.meter.add(self.done, loss)

    def _keep(self, state: State) -> None:
        """Keep a checkpoint. Raises LossNotFinite: a broken one is never kept."""
        if not all(np.isfinite(weights).all() for weights in state.weights.values()):
            raise LossNotFinite(
                f"the weights after step {state.step} of {self.total} are not finite", {"step": state.step}
            )
        if checkpoint.save_checkpoint(self.run.checkpoints, state, self.identity, _versions(), self.lasting):
            self.kept = state.step
        self._keep_lora(state)
        self.state = state

    def _keep_lora(self, state: State) -> None:
        """Keep the LoRA file of a checkpoint for the owner. A store that fails is only a warning."""
        if self.run.loras is None or state.step == self.total or state.step % self.job.checkpoint_every:
            return
        looks = [look for look in state.looks if look[0] == state.step]
        data, _ = _serialized(self.run, replace(state, best={}), self.identity, looks[0] if looks else None)
        try:
            self.run.loras.save(state.step, data)
        except (OSError, ImprintError) as error:
            log.warning("the LoRA file of step %d could not be kept, training goes on: %s", state.step, error)


def _planned(
    run: TrainRun, family: Family, folder: Path, device: torch.device, agreement: Agreement
) -> tuple[Plan | None, Agreement]:
    """How the job fits into the card's memory; None on a CPU, and where several processes share its batch.

    A job whose base would fit only in fewer bits than it began with begins anew. Raises OutOfMemory, before anything is
    loaded, for a job that cannot fit.
    """
    if device.type != "cuda" or distributed.is_asked_for():
        return None, agreement
    free, _ = torch.cuda.mem_get_info(device)
    spec, part = run.spec, family.parts[0]
    share = 1.0 if folder.is_file() else share_of(spec, weights_bytes(folder, part))
    memory = free + torch.cuda.memory_reserved(device)
    most_slots, weight_bytes = run.slots or max_slots("cuda"), agreement.dtype.itemsize

    def planned(agreement: Agreement) -> Plan:
        return memory_plan.plan(
            spec, memory, most_slots=most_slots, weight_bytes=weight_bytes, share=share,
            quantisations=agreement.quantisations,
        )  # fmt: skip

    try:
        made = planned(agreement)
    except OutOfMemory:
        anew = agreed(run, device, weights_bytes(folder, part), None)
        if agreement.state is None or anew.quantisations == agreement.quantisations:
            raise
        made, agreement = planned(anew), anew
        log.warning("job %s begins anew: with the base that it began on it does not fit this card", run.job_id)
    log.info("job %s %s", run.job_id, made)
    return made, agreement


def _is_distilled(run: TrainRun) -> bool:
    """Whether the base is a few-step model, which plain training would undo."""
    return is_distilled(run.spec.base_model, run.base_model)


def _identity(run: TrainRun, family: Family, folder: Path) -> dict[str, str]:
    """What a checkpoint of this run says it belongs to."""
    also: Sequence[Path] = [run.training_adapter] if run.training_adapter is not None else []
    if also and not also[0].is_file():
        raise BaseModelUnavailable(f"the training adapter {also[0]} is not there")
    recipe = lora_metadata.recipe_json(run.spec)
    return {
        "seed": str(run.spec.seed),
        "spec": hashlib.sha256(recipe.encode()).hexdigest(),
        "dataset": run.dataset_sha256,
        "base": fingerprint(folder, family.parts, also),
        "start": lora_metadata.START,
    }


def _versions() -> dict[str, str]:
    return {"imprint": lora_metadata.own_version(), **{name: version(name) for name in ("torch", "diffusers", "peft")}}


def _export(
    run: TrainRun,
    state: State,
    identity: dict[str, str],
    resumed_from: int,
    seconds: float,
    device: torch.device,
) -> TrainResult:
    """Write the LoRA file."""
    look = _delivered(run.spec, state)
    data, report = _serialized(run, state, identity, look)
    try:
        lora_file.write_file(run.out, data)
    except OSError as error:
        raise StoreUnavailable(f"the LoRA file cannot be written: {error.strerror}") from error
    return TrainResult(
        path=run.out,
        sha256=report.sha256,
        size_bytes=report.size_bytes,
        steps=state.step,
        resumed_from=resumed_from,
        final_loss=state.loss,
        train_seconds=seconds,
        device=device.type,
        validation_loss=look[1] if look else None,
        metadata=dict(report.metadata),
    )


def _serialized(
    run: TrainRun, state: State, identity: dict[str, str], look: tuple[int, float] | None
) -> tuple[bytes, lora_file.LoraReport]:
    """A LoRA file, after the same check that it must pass before it is delivered. `look` is that of its weights."""
    spec = run.spec
    metadata = lora_metadata.build_metadata(
        spec,
        split_held_out(run.examples, spec)[0],
        steps=state.step,
        dataset_sha256=run.dataset_sha256,
        base_sha256=identity["base"],
        prediction=state.prediction,
        look=look,
        quantisation=state.quantisation,
    )
    data = lora_file.serialize_lora(spec.family, matrices_of(state.delivered), spec.file_alpha, metadata)
    return data, lora_file.check_lora_file(data, family=spec.family, rank=spec.rank)


def _delivered(spec: TrainSpec, state: State) -> tuple[int, float] | None:
    """The look (step, validation loss) at the weights that are delivered; None where there are no held-out pictures."""
    if not state.looks:
        return None
    return min(state.looks, key=lambda look: look[1]) if spec.validation.keep_best else state.looks[-1]


@contextmanager
def device_errors(run: TrainRun) -> Iterator[None]:
    """What torch or Python raises when memory runs out, as OutOfMemory; when the device fails, as DeviceLost."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_device_error(error):
            device_failure.report(f"{type(error).__name__}: {str(error)[:200]}")
            raise DeviceLost("the device of the worker failed; another worker goes on") from error
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"memory ran out while training {run.spec.family} at {run.spec.resolution} px, batch "
            f"{run.spec.batch_size}: use a smaller batch or resolution, or a larger device"
        ) from error
