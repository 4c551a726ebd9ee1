"""Checkpoints: all that a training is at one step, as one safetensors blob that says what it belongs to.

A checkpoint is only ever used by the run that it was made for: seed, spec, dataset and base model are in it as hashes,
and its content is hashed too. One that is damaged or foreign is passed over for the one before it, with a line in the
log.
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
NEWEST = 2  # checkpoints that stay, whatever their step
_KINDS = {"uint8": "U8", "float64": "F64"}  # all else is float32
LASTING_EPOCHS = 10  # and those at a multiple of so many epochs stay until the training has ended


def serialize(state: State, identity: Mapping[str, str], versions: Mapping[str, str]) -> bytes:
    """One blob. `identity` is what must match on the way back; `versions` is for whoever reads the file."""
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
        "looks": json.dumps(state.looks),
        **{f"identity.{name}": value for name, value in identity.items()},
        **{f"version.{name}": value for name, value in versions.items()},
    }
    return pack(tensors, {**facts, "sha256": _content(tensors, facts)})


def deserialize(data: bytes, identity: Mapping[str, str], step: int) -> State:
    """The state in a blob; raises Malformed, which says why, for one that is damaged, foreign, or of another step."""
    tensors, facts = unpack(data)
    if facts.get("format") != FORMAT:
        raise Malformed(f"it is of format {facts.get('format', 'none')[:40]!r}")
    digest = facts.pop("sha256", "")
    if digest != _content(tensors, facts):
        raise Malformed("its content is damaged")
    for name, value in identity.items():
        if facts.get(f"identity.{name}") != value:
            raise Malformed(f"it was made with another {name}")
    if facts["step"] != str(step):
        raise Malformed(f"it is of step {facts['step']}")
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
        looks=tuple((step, loss) for step, loss in json.loads(facts.get("looks", "[]"))),
    )


def _content(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(repr(tensors[name].shape).encode())
        digest.update(tensors[name].elements.tobytes())
    return digest.hexdigest()


def load_latest(checkpoints: CheckpointStore, identity: Mapping[str, str], total: int) -> State | None:
    """The highest checkpoint that validates, or None. A store that fails costs the head start, not the training."""
    try:
        steps = sorted((step for step in checkpoints.steps() if 0 < step <= total), reverse=True)
    except (OSError, ImprintError) as error:
        log.warning("the checkpoints cannot be listed, training begins at step 0: %s", error)
        return None
    for step in steps:
        try:
            return deserialize(checkpoints.load(step), identity, step)
        except Malformed as error:
            log.warning("the checkpoint of step %d is passed over: %s", step, error)
        except (OSError, ImprintError) as error:
            log.warning("the checkpoint of step %d cannot be read and is passed over: %s", step, error)
    return None


def save_checkpoint(
    checkpoints: CheckpointStore, state: State, identity: Mapping[str, str], versions: Mapping[str, str], lasting: int
) -> bool:
    """Save a checkpoint; a store that fails is a warning, since the training itself is sound. True if it was kept.

    Of those before it the last one stays, and every one at a multiple of `lasting` steps.
    """
    try:
        checkpoints.save(state.step, serialize(state, identity, versions))
    except (OSError, ImprintError) as error:
        log.warning("the checkpoint of step %d could not be kept, training goes on: %s", state.step, error)
        return False
    try:
        for step in list(checkpoints.steps())[:-NEWEST]:
            if step % lasting:
                checkpoints.drop(step)
    except (OSError, ImprintError) as error:
        log.warning("an old checkpoint stays: %s", error)
    return True
