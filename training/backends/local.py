"""The local backend: one training on this worker's device, together with others in the same engine.

Every random number is a pure function of (job seed, step), and a checkpoint holds the rest of the state. So on a CPU a
training that was killed and resumed writes the same file, byte for byte, as an uninterrupted one.
"""

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import BaseModelUnavailable, DeviceLost, OutOfMemory
from training import device_failure, families
from training.backends import checkpoint, resident
from training.backends.agreement import agreed
from training.backends.export import export_lora
from training.backends.local_training import LocalTraining
from training.backends.planning import fit_to_memory
from training.device import choose, configure
from training.engine.evaluation.validation import is_over
from training.engine.faults import is_device_error, is_out_of_memory
from training.engine.state import State
from training.families.family import FamilyCode, Where
from training.families.weights.fingerprint import fingerprint
from training.families.weights.parts import locate, weights_bytes
from training.lora import metadata as lora_metadata
from training.ports import TrainResult, TrainRun
from training.spec import is_distilled

log = logging.getLogger(__name__)


def train(run: TrainRun) -> TrainResult:
    """Train one LoRA and write its file to `run.out`, atomically.

    Resumes from the newest valid checkpoint; if that is at the last step, only the file is written. Raises
    BaseModelUnavailable, OutOfMemory, DeviceLost, LossNotFinite, ImageInvalid, StoreUnavailable (the file cannot be
    written), HandOver, and what `run.control.check` raises.
    """
    device = choose(run.device)
    configure(device, deterministic=run.deterministic)
    family = families.find(run.spec.family)
    folder = locate(run.base_model, family.parts)
    total = run.spec.steps(len(run.examples))
    identity = _identity(run, family, folder)
    latest = checkpoint.load_latest(run.checkpoints, identity, total)
    agreement = agreed(run, device, weights_bytes(folder, family.parts[0]), latest)
    if (done := agreement.state) is not None and _is_finished(run, done, total):
        return export_lora(run, done, identity, resumed_from=done.step, train_seconds=0.0, device=device)
    plan, agreement = fit_to_memory(run, family, folder, device, agreement)
    start = agreement.state
    if start is not None:
        log.info("job %s resumes at step %d of %d", run.job_id, start.step, total)
    quantisation = plan.quantisation if plan is not None else agreement.quantisations[0]
    is_few_step = is_distilled(run.spec.base_model, run.base_model)
    where = Where(
        folder, device, agreement.dtype, run.training_adapter, is_few_step, quantisation, run.spec.adapter.text_encoder
    )
    with device_errors(run), resident.shared_engine(family, where, identity["base"], run.control.check) as engine:
        with resident.device_use(run.control.check):
            training = LocalTraining(run, engine, identity, total, start, plan)
        begun = time.monotonic()
        state = training.train()
        seconds = time.monotonic() - begun
    resumed_from = start.step if start is not None else 0
    return export_lora(run, state, identity, resumed_from=resumed_from, train_seconds=seconds, device=device)


def _is_finished(run: TrainRun, state: State, total: int) -> bool:
    """Whether all steps are done, or `patience` has ended the training."""
    return state.step >= total or is_over(state.validation_losses, run.spec.validation.patience)


def _identity(run: TrainRun, family: FamilyCode, folder: Path) -> dict[str, str]:
    """What identifies this training in its checkpoints. Raises BaseModelUnavailable for a file that cannot be read."""
    adapter = run.training_adapter
    if adapter is not None and not adapter.is_file():
        raise BaseModelUnavailable(f"the training adapter {adapter} does not exist")
    recipe = lora_metadata.recipe_json(run.spec)
    return {
        "seed": str(run.spec.seed),
        "spec": hashlib.sha256(recipe.encode()).hexdigest(),
        "dataset": run.dataset_sha256,
        "base": fingerprint(folder, family.parts, [adapter] if adapter is not None else []),
        "start": lora_metadata.START,
    }


@contextmanager
def device_errors(run: TrainRun) -> Iterator[None]:
    """Translate errors of torch and Python: OutOfMemory if memory runs out, DeviceLost if the device fails."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_device_error(error):
            device_failure.report(f"{type(error).__name__}: {str(error)[:200]}")
            raise DeviceLost("the device of the worker failed; another worker continues") from error
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"memory ran out while training {run.spec.family} at {run.spec.resolution} px, batch "
            f"{run.spec.batch_size}: use a smaller batch or resolution, or a larger device"
        ) from error
