"""Checkpoints: the whole state of a training at one step, as one safetensors file.

A checkpoint contains hashes of seed, spec, dataset, base model and its own content, so only the training that wrote it
can use it. If one is damaged or does not match, the one before it is used, with a warning in the log.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import cast

from core.errors import ImprintError
from training.engine.state import State
from training.lora.safetensor import Array, Malformed, Tensor, pack, tensor, unpack
from training.options import Quantisation
from training.ports import CheckpointStore

log = logging.getLogger(__name__)

FORMAT = "imprint-checkpoint/1"
NEWEST = 2  # the newest checkpoints are always kept
_KINDS = {"uint8": "U8", "float64": "F64"}  # others are float32
LASTING_EPOCHS = 10  # those at multiples of this many epochs are kept until the end


def serialize(state: State, identity: Mapping[str, str], versions: Mapping[str, str]) -> bytes:
    """A checkpoint file. `identity` must match when it is loaded; `versions` is only information."""
    parts = {"weights": state.weights, "best": state.best, **state.kept}
    tensors = {
        f"{part}/{name}": tensor(values, _KINDS.get(values.dtype.name, "F32"))
        for part, held in parts.items()
        for name, values in held.items()
    }
    facts = {
        "format": FORMAT,
        "step": str(state.step),
        "loss": repr(state.loss),
        "prediction": state.prediction,
        "precision": state.precision,
        "quantisation": state.quantisation,
        "validation_losses": json.dumps(state.validation_losses),
        **{f"identity.{name}": value for name, value in identity.items()},
        **{f"version.{name}": value for name, value in versions.items()},
    }
    return pack(tensors, {**facts, "sha256": _content(tensors, facts)})


def deserialize(data: bytes, identity: Mapping[str, str], step: int) -> State:
    """The state in a checkpoint file. Raises Malformed if it is damaged, or has another identity or step."""
    tensors, facts = unpack(data)
    if facts.get("format") != FORMAT:
        raise Malformed(f"its format is {facts.get('format', 'none')[:40]!r}")
    digest = facts.pop("sha256", "")
    if digest != _content(tensors, facts):
        raise Malformed("its content is damaged")
    for name, value in identity.items():
        if facts.get(f"identity.{name}") != value:
            raise Malformed(f"it has another {name}")
    if facts["step"] != str(step):
        raise Malformed(f"its step is {facts['step']}")
    losses = facts.get("validation_losses") or facts.get("looks", "[]")  # the name that earlier versions wrote
    parts: dict[str, dict[str, Array]] = {}
    for name, held in tensors.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = held.elements
    return State(
        step,
        weights=parts.pop("weights", {}),
        best=parts.pop("best", {}),
        kept=parts,
        prediction=facts["prediction"],
        precision=facts.get("precision", ""),
        quantisation=cast(Quantisation, facts.get("quantisation", "none")),
        loss=float(facts["loss"]),
        validation_losses=tuple((step, loss) for step, loss in json.loads(losses)),
    )


def _content(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(repr(tensors[name].shape).encode())
        digest.update(tensors[name].elements.tobytes())
    return digest.hexdigest()


def load_latest(checkpoints: CheckpointStore, identity: Mapping[str, str], total: int) -> State | None:
    """The newest valid checkpoint, or None, also if the store fails: then the training starts at step 0."""
    try:
        steps = sorted((step for step in checkpoints.steps() if 0 < step <= total), reverse=True)
    except (OSError, ImprintError) as error:
        log.warning("the checkpoints cannot be listed, training begins at step 0: %s", error)
        return None
    for step in steps:
        try:
            return deserialize(checkpoints.load(step), identity, step)
        except Malformed as error:
            log.warning("the checkpoint of step %d is ignored: %s", step, error)
        except (OSError, ImprintError) as error:
            log.warning("the checkpoint of step %d cannot be read and is ignored: %s", step, error)
    return None


def save_checkpoint(
    checkpoints: CheckpointStore, state: State, identity: Mapping[str, str], versions: Mapping[str, str], lasting: int
) -> bool:
    """Save a checkpoint; returns whether it was saved. A store that fails is only a warning.

    Of the older checkpoints, the last one and those at multiples of `lasting` steps are kept.
    """
    try:
        checkpoints.save(state.step, serialize(state, identity, versions))
    except (OSError, ImprintError) as error:
        log.warning("the checkpoint of step %d could not be saved, training continues: %s", state.step, error)
        return False
    try:
        for step in list(checkpoints.steps())[:-NEWEST]:
            if step % lasting:
                checkpoints.drop(step)
    except (OSError, ImprintError) as error:
        log.warning("an old checkpoint stays: %s", error)
    return True
