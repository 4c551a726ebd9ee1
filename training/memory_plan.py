"""How much of a device's memory a training takes, and how it is made to fit: slots, gradient checkpointing, a quantised
base. Reckoned before the first step, and without torch, so that a quote can say it too.

The numbers are counted from shapes by `python -m training.engine.memory_count`; a test holds them against that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from core.errors import OutOfMemory
from training.spec import Family, TrainSpec

Quantised = Literal["off", "8bit", "4bit"]

GIB = 2**30
# What PyTorch, cuBLAS and cuDNN take for themselves, and of a step what the allocator cannot use for its pieces.
_RUNTIME_BYTES, _FRAGMENTS = 0.75 * GIB, 1.08
# Bytes for each number of a LoRA: float32 weights and what the optimizer keeps; an average has 4 more.
_OPTIMIZER_BYTES = {"adamw": 12, "adamw8bit": 6.1, "prodigy": 20}
# And while a step runs: the copies that layers apply, and then the gradient with what the update needs beside it.
_APPLIED_BYTES, _UPDATE_BYTES = 4, {"adamw": 12, "adamw8bit": 45, "prodigy": 16}
# How much more activations a step keeps with an option, at most.
_DORA, _ALL_TARGETS, _PRIOR = 1.3, 1.15, 2.0
# Bytes for each quantised weight: codes, and the scale of each row or of each block of 64.
_QUANTISED_BYTES: dict[str, float] = {"8bit": 1.01, "4bit": 0.5625}


@dataclass(frozen=True)
class Sizes:
    """A family's standard model, counted. Activations are in bytes with a base of 16 bits."""

    parameters: int  # of the denoiser
    quantisable: int  # of those, in the linears of its blocks
    lora: Mapping[str, int]  # numbers of a LoRA of rank 1, by target set
    sample: tuple[int, int]  # what a step keeps for each sample, and for each of the sample's latent pixels
    checkpointed: tuple[int, int]  # the same with gradient checkpointing
    text_bytes: int  # of all text encoders


SIZES: dict[Family, Sizes] = {}


@dataclass(frozen=True)
class Plan:
    """How a training is run on a device, and what it takes of its memory."""

    slots: int  # most jobs in one step
    checkpointing: bool
    quantised: Quantised
    bytes: int  # for this job alone
    device_bytes: int

    def __str__(self) -> str:
        """For the log: `needs 13.6 GB, this card has 16 (gradient checkpointing, 1 slot)`."""
        how = [f"{self.slots} slot{'s' if self.slots > 1 else ''}"]
        if self.checkpointing:
            how.append("gradient checkpointing")
        if self.quantised != "off":
            how.append(f"{self.quantised} base")
        return f"needs {self.bytes / GIB:.1f} GB, this card has {self.device_bytes / GIB:.1f} ({', '.join(how)})"


def need(
    spec: TrainSpec, *, slots: int = 1, checkpointing: bool = False, quantised: Quantised = "off",
    base_bytes: int = 2, share: float = 1.0,
) -> int:  # fmt: skip
    """Bytes that so many jobs of `spec` in one step take at most.

    base_bytes: of each weight of the base that is not quantised, and of each activation. share: how large the base is,
    measured by its family's standard model.
    """
    sizes, asked = SIZES[spec.family], spec.adapter
    quantisable = sizes.quantisable if quantised != "off" else 0
    weights = (sizes.parameters - quantisable) * base_bytes + quantisable * _QUANTISED_BYTES.get(quantised, 0)
    fixed, per_pixel = sizes.checkpointed if checkpointing else sizes.sample
    activations = (fixed + per_pixel * (spec.resolution // 8) ** 2) * base_bytes / 2 * slots * spec.batch_size
    for factor, is_asked in (
        (_DORA, asked.dora), (_ALL_TARGETS, asked.targets == "all"), (_PRIOR, spec.objective.prior_weight > 0),
    ):  # fmt: skip
        activations *= factor if is_asked else 1
    numbers = sizes.lora[asked.targets] * padded(spec.rank) * slots
    kept = numbers * (_OPTIMIZER_BYTES[spec.optimizer] + (4 if spec.optimization.ema_decay else 0))
    step = max(activations + numbers * _APPLIED_BYTES, numbers * _UPDATE_BYTES[spec.optimizer])
    return round((weights + kept + step * _FRAGMENTS) * share + _RUNTIME_BYTES)


def plan(
    spec: TrainSpec, device_bytes: int, *, quantise: str = "auto", most_slots: int = 1, base_bytes: int = 2,
    share: float = 1.0,
) -> Plan:  # fmt: skip
    """How `spec` is trained in `device_bytes`: the first way of these that fits. As it is; with gradient checkpointing,
    which changes no number; with a base of 8 bits, then of 4, where `quantise` leaves that open.

    Raises OutOfMemory, which says what would fit.
    """
    for quantised in _allowed(quantise):
        for checkpointing in (False, True):
            given = {"checkpointing": checkpointing, "quantised": quantised, "base_bytes": base_bytes, "share": share}
            takes = [need(spec, slots=slots, **given) for slots in range(1, most_slots + 1)]  # type: ignore[arg-type]
            if takes[0] <= device_bytes:
                slots = sum(one <= device_bytes for one in takes)
                return Plan(slots, checkpointing, quantised, takes[0], device_bytes)
    raise OutOfMemory(
        _refusal(spec, device_bytes, quantise, base_bytes, share), {"memory_bytes": device_bytes}
    )


def padded(rank: int) -> int:
    """The rank of the stack that a job of `rank` is trained in: the next power of two, at least 4."""
    return max(4, 1 << (rank - 1).bit_length())


def _allowed(quantise: str) -> Sequence[Quantised]:
    if quantise == "auto":
        return "off", "8bit", "4bit"
    return {"off": ("off",), "8bit": ("8bit",), "4bit": ("4bit",)}[quantise]  # type: ignore[return-value]


def least(spec: TrainSpec, quantise: str, base_bytes: int = 2, share: float = 1.0) -> int:
    """Bytes that `spec` takes with all that saves memory."""
    smallest = _allowed(quantise)[-1]
    return need(spec, checkpointing=True, quantised=smallest, base_bytes=base_bytes, share=share)


def _refusal(spec: TrainSpec, device_bytes: int, quantise: str, base_bytes: int, share: float) -> str:
    """What does not fit, and what would."""
    takes = least(spec, quantise, base_bytes, share)
    ways = []
    for name, values in (
        ("batch_size", range(spec.batch_size - 1, 0, -1)),
        ("resolution", range(spec.resolution - 64, 0, -64)),
        ("rank", (rank for rank in (128, 64, 32, 16, 8, 4) if rank < spec.rank)),
    ):
        for value in values:
            if least(spec.model_copy(update={name: value}), quantise, base_bytes, share) <= device_bytes:
                ways.append(f"{name} {value}")
                break
    if quantise == "off" and least(spec, "auto", base_bytes, share) <= device_bytes:
        ways.append("a quantised base (IMPRINT_QUANTISE_BASE=auto)")
    ways.append(f"a card with {-(-takes // GIB):.0f} GB")
    return (
        f"training {spec.family} at {spec.resolution} px, batch {spec.batch_size}, rank {spec.rank} needs "
        f"{takes / GIB:.1f} GB, and this card has {device_bytes / GIB:.1f}: use {' or '.join(ways)}"
    )
