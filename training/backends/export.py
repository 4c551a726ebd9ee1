"""Makes LoRA files of a training's states, and writes that of a finished training."""

from collections.abc import Mapping

import torch

from core.errors import StoreUnavailable
from training.backends.encoded_dataset import split_held_out
from training.engine.layout import matrices_of
from training.engine.state import State
from training.lora import file as lora_file
from training.lora import metadata as lora_metadata
from training.ports import TrainResult, TrainRun
from training.spec import TrainSpec


def export_lora(
    run: TrainRun,
    state: State,
    identity: Mapping[str, str],
    *,
    resumed_from: int,
    train_seconds: float,
    device: torch.device,
) -> TrainResult:
    """Write the LoRA file to `run.out`. Raises LoraInvalid, and StoreUnavailable if the file cannot be written."""
    validation = _delivered_validation(run.spec, state)
    data, report = serialize_lora(run, state, identity, validation)
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
        train_seconds=train_seconds,
        device=device.type,
        validation_loss=validation[1] if validation else None,
        metadata=dict(report.metadata),
    )


def serialize_lora(
    run: TrainRun, state: State, identity: Mapping[str, str], validation: tuple[int, float] | None
) -> tuple[bytes, lora_file.LoraReport]:
    """A LoRA file with the delivered weights of `state`, and the report of the check that it must pass.

    validation: (step, loss) of these weights, for the metadata. Raises LoraInvalid.
    """
    spec = run.spec
    metadata = lora_metadata.build_metadata(
        spec,
        split_held_out(run.examples, spec)[0],
        steps=state.step,
        dataset_sha256=run.dataset_sha256,
        base_sha256=identity["base"],
        prediction=state.prediction,
        validation=validation,
        quantisation=state.quantisation,
    )
    alpha, conv_alpha = spec.file_alphas
    data = lora_file.serialize_lora(spec.family, matrices_of(state.delivered), alpha, metadata, conv_alpha)
    return data, lora_file.check_trained(data, spec)


def _delivered_validation(spec: TrainSpec, state: State) -> tuple[int, float] | None:
    """The validation (step, loss) of the delivered weights; None without held-out pictures."""
    losses = state.validation_losses
    if not losses:
        return None
    return min(losses, key=lambda one: one[1]) if spec.validation.keep_best else losses[-1]
