"""The local backend: one training, one loop, read top to bottom. Diffusers' modules, peft's adapters, torch's AdamW.

Every number that chance decides is a pure function of (job seed, step), and a checkpoint holds the rest. So on a CPU a
training that was killed and resumed writes the same file, byte for byte, as one that was left alone.
"""

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from core.errors import BaseModelUnavailable, HandOver, LossNotFinite, OutOfMemory, StoreUnavailable
from training import families, lora_file, lora_metadata
from training.backends import checkpoint, resident
from training.backends.adapter import Adapter, pairs_of
from training.backends.checkpoint import State
from training.backends.meter import Meter
from training.backends.randomness import Order, generator
from training.device import choose, precision
from training.families.family import Base, Condition, Family, Where
from training.families.fingerprint import fingerprint
from training.families.parts import locate
from training.ports import TrainResult, TrainRun
from training.safetensor import Array

log = logging.getLogger(__name__)

WEIGHT_DECAY = 1e-2
MAX_GRADIENT_NORM = 1.0
# How many losses may be in flight on a GPU: reading one sooner would make the host wait for the device.
CUDA_ARREARS = 2


def train(run: TrainRun) -> TrainResult:
    """Train one LoRA and write its file to `run.out`, whole or not at all.

    Goes on from the highest sound checkpoint; with one at the last step it only writes the file. Raises
    BaseModelUnavailable, OutOfMemory, LossNotFinite, ImageInvalid, StoreUnavailable (the file cannot be written), and
    whatever `run.control.check` raises.
    """
    device = choose(run.device)
    family = families.find(run.spec.family)
    folder = locate(run.base_model, family.parts)
    total = run.spec.steps(len(run.examples))
    identity = _identity(run, family, folder)
    state = checkpoint.latest(run.checkpoints, identity, total)
    resumed_from = state.step if state is not None else 0
    seconds = 0.0
    if state is None or state.step < total:
        if state is not None:
            log.info("job %s goes on from step %d of %d", run.job_id, state.step, total)
        where = Where(folder, device, precision(device), run.training_adapter, _is_distilled(run))
        with memory_errors(run), resident.borrowed(family, where, identity["base"]) as base:
            learner = Learner(run, family, base, identity, total, state)
            begun = time.monotonic()
            state = learner.learn()
            seconds = time.monotonic() - begun
    return _export(run, state, identity, total, resumed_from, seconds, device)


class Learner:
    """A base model with an adapter on it, everything encoded, ready to learn."""

    def __init__(
        self,
        run: TrainRun,
        family: Family,
        base: Base,
        identity: dict[str, str],
        total: int,
        state: State | None,
    ) -> None:
        self.run, self.family, self.base, self.identity, self.total = run, family, base, identity, total
        spec, device = run.spec, base.device
        for warning in self.base.warnings:
            log.warning("job %s: %s", run.job_id, warning)
        base.wake_encoders()
        self.moments, self.conditions = _encode(run, family, base)
        base.park_encoders()
        self.adapter = Adapter(self.base.denoiser, family.targets, rank=spec.rank, alpha=spec.alpha, seed=spec.seed)
        self.masters = self.adapter.parameters()
        self.optimizer = torch.optim.AdamW(self.masters, lr=spec.learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.base.dtype is torch.float16)
        self.order = Order(run.examples, spec.batch_size, spec.seed)
        self.start = state.step if state is not None else 0
        self.kept = self.start
        self._begin(state)
        loss = state.loss if state is not None else 0.0
        arrears = CUDA_ARREARS if device.type == "cuda" else 0
        self.meter = Meter(run.control, start=self.start, total=total, loss=loss, arrears=arrears)

    def learn(self) -> State:
        """All steps that are left; gives the state after the last one, which is kept as a checkpoint too."""
        every = self.run.checkpoint_every_epochs * self.order.steps_per_epoch
        for step in range(self.start, self.total):
            try:
                self.run.control.check()
            except HandOver:
                if step > self.kept:
                    self._keep(step)
                raise
            self.meter.add(step + 1, self._step_within_memory(step))
            if (step + 1) % every == 0 and step + 1 < self.total:
                self._keep(step + 1)
        return self._keep(self.total)

    def step(self, step: int) -> Tensor:
        """One step, counted from 0: forward, backward, clip, AdamW. Gives its loss, still on the device."""
        places = self.order.batch(step)
        chance = generator(self.run.spec.seed, "step", step)
        base = self.base
        made = self.family.draw(base, torch.stack([self.moments[place] for place in places]), chance).to(base.device)
        with torch.autocast(base.device.type, base.dtype, enabled=base.dtype is not torch.float32):
            loss = self.family.losses(base, made, [self.conditions[place] for place in places]).mean()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.masters, MAX_GRADIENT_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return loss.detach()

    def _step_within_memory(self, step: int) -> Tensor:
        """One step; where a GPU's memory is too small, once more with activations reckoned anew instead of kept.

        A step is a pure function of its number until AdamW moves the weights, which takes no memory that matters, so
        that doing it again changes nothing.
        """
        try:
            return self.step(step)
        except torch.OutOfMemoryError:
            if self.base.denoiser.is_gradient_checkpointing:
                raise
        log.warning("job %s: out of GPU memory, going on with gradient checkpointing", self.run.job_id)
        self.optimizer.zero_grad()
        torch.cuda.empty_cache()
        self.base.denoiser.enable_gradient_checkpointing()
        return self.step(step)

    def _keep(self, step: int) -> State:
        """The state after `step` steps, also kept as a checkpoint. Raises LossNotFinite: a broken one is never kept."""
        self.meter.settle()
        if not self.adapter.is_finite():
            raise LossNotFinite(f"the weights after step {step} of {self.total} are not finite", {"step": step})
        parts: dict[str, dict[str, Array]] = {"weights": {}, "first": {}, "second": {}}
        for name, master in zip(self.adapter.names(), self.masters, strict=True):
            moments = self.optimizer.state[master]
            for part, held in (("weights", master), ("first", moments["exp_avg"]), ("second", moments["exp_avg_sq"])):
                parts[part][name] = held.detach().float().cpu().numpy()
        state = State(
            step,
            **parts,
            updates=int(self.optimizer.state[self.masters[0]]["step"]),
            loss=self.meter.loss,
            prediction=self.base.prediction,
            scaler=self.scaler.state_dict(),
        )
        if checkpoint.keep(self.run.checkpoints, state, self.identity, _versions()):
            self.kept = step
        return state

    def _begin(self, state: State | None) -> None:
        """Put a checkpoint's numbers in their places; without one AdamW's moments are zero, as it would have them."""
        updates = state.updates if state is not None else 0
        for name, master in zip(self.adapter.names(), self.masters, strict=True):
            if state is not None:
                master.data.copy_(torch.from_numpy(state.weights[name].copy()))
            self.optimizer.state[master] = {
                "step": torch.tensor(float(updates), device=master.device),
                "exp_avg": _like(master, state.first[name] if state is not None else None),
                "exp_avg_sq": _like(master, state.second[name] if state is not None else None),
            }
        if state is not None:
            self.scaler.load_state_dict(dict(state.scaler))


def _like(master: Tensor, held: Array | None) -> Tensor:
    """What was held, as a tensor beside `master`; zeros for nothing."""
    return torch.zeros_like(master) if held is None else torch.from_numpy(held.copy()).to(master.device)


def _is_distilled(run: TrainRun) -> bool:
    """Whether the base is a few-step model, which plain training would undo."""
    return "turbo" in f"{run.spec.base_model} {run.base_model}".lower()


def _encode(run: TrainRun, family: Family, base: Base) -> tuple[list[Tensor], list[Condition]]:
    """The moments of every picture's latents, on the CPU, and the condition of every caption; each once."""
    conditions = family.encode_captions(base, run.examples)
    moments: dict[str, Tensor] = {}
    for example in run.examples:
        run.control.check()
        if example.sha256 not in moments:
            moments[example.sha256] = family.encode_picture(base, example)
    return [moments[example.sha256] for example in run.examples], conditions


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
    total: int,
    resumed_from: int,
    seconds: float,
    device: torch.device,
) -> TrainResult:
    """Write the LoRA file, after the same check that it must pass before it is delivered."""
    spec = run.spec
    metadata = lora_metadata.describe(
        spec,
        run.examples,
        steps=total,
        dataset_sha256=run.dataset_sha256,
        base_sha256=identity["base"],
        prediction=state.prediction,
    )
    data = lora_file.to_bytes(spec.family, pairs_of(state.weights), spec.alpha, metadata)
    report = lora_file.check(data, family=spec.family, rank=spec.rank)
    try:
        lora_file.write(run.out, data)
    except OSError as error:
        raise StoreUnavailable(f"the LoRA file cannot be written: {error.strerror}") from error
    return TrainResult(
        path=run.out,
        sha256=report.sha256,
        size_bytes=report.size_bytes,
        steps=total,
        resumed_from=resumed_from,
        final_loss=state.loss,
        train_seconds=seconds,
        device=device.type,
        metadata=dict(report.metadata),
    )


@contextmanager
def memory_errors(run: TrainRun) -> Iterator[None]:
    """Whatever torch or Python says when memory runs out, as OutOfMemory with what to do about it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        told = str(error)
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in told:
            raise
        raise OutOfMemory(
            f"memory ran out while training {run.spec.family} at {run.spec.resolution} px, batch "
            f"{run.spec.batch_size}: use a smaller batch or resolution, or a larger device"
        ) from error
