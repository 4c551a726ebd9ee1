"""How much of a device's memory a training takes, and how it is made to fit: slots and gradient checkpointing.

Worked out before the first step, and without torch, so that a quote can use it too. The numbers are counted from shapes
by `python -m training.engine.memory_count`; a test holds them against that.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from core.errors import OutOfMemory
from training.spec import Family, TrainSpec

GIB = 2**30
# What PyTorch, cuBLAS and cuDNN take for themselves; and what the allocator cannot use, as a share of a step.
_RUNTIME_BYTES, _FRAGMENTATION = 0.75 * GIB, 1.08
# Bytes for each number of a LoRA: float32 weights and what the optimizer keeps. An average has 4 more.
_KEPT_BYTES = {"adamw": 12, "adamw8bit": 6.1, "prodigy": 20}
# And while a step runs: the copies that layers apply; at its end the gradient, and what the update needs beside it.
_APPLIED_BYTES, _UPDATE_BYTES = 4, {"adamw": 16, "adamw8bit": 48, "prodigy": 24}
# How much more a step keeps with an option, at most.
_DORA, _ALL_TARGETS, _PRIOR = 1.5, 1.25, 2.1


@dataclass(frozen=True)
class Sizes:
    """A family's standard model, counted, with a base of 16 bits."""

    parameters: int  # of the denoiser
    lora: Mapping[str, int]  # numbers of a LoRA of rank 1, by target set
    sample: tuple[int, int]  # bytes that a step takes for each sample, and for each of the sample's latent pixels
    checkpointed: tuple[int, int]  # the same with gradient checkpointing


SIZES: dict[Family, Sizes] = {
    "sd15": Sizes(
        parameters=859520964,
        lora={"attention": 199296, "all": 423936},
        sample=(5657088, 211726),
        checkpointed=(1835008, 57696),
    ),
    "sdxl": Sizes(
        parameters=2567463684,
        lora={"attention": 1451520, "all": 2659840},
        sample=(37750784, 369112),
        checkpointed=(11945472, 33440),
    ),
    "z-image": Sizes(
        parameters=6154908736,
        lora={"attention": 2188800, "all": 2657280},
        sample=(2137366528, 2069286),
        checkpointed=(162610176, 141675),
    ),
}


@dataclass(frozen=True)
class Plan:
    """How a training runs on a device, and what it takes of the device's memory."""

    slots: int  # most jobs in one step
    checkpointing: bool
    needed_bytes: int  # by this job alone
    device_bytes: int

    def __str__(self) -> str:
        """For the log: `needs 13.6 GB, this card has 16.0 (1 slot, gradient checkpointing)`."""
        how = f"{self.slots} slot{'s' if self.slots > 1 else ''}"
        if self.checkpointing:
            how += ", gradient checkpointing"
        return f"needs {self.needed_bytes / GIB:.1f} GB, this card has {self.device_bytes / GIB:.1f} ({how})"


def needed(
    spec: TrainSpec, *, slots: int = 1, checkpointing: bool = False, weight_bytes: int = 2, share: float = 1.0
) -> int:
    """The most bytes that so many jobs of `spec` take in one step.

    weight_bytes: of each number of the base, 2 or 4. share: the size of the base, measured by its family's standard
    model.
    """
    sizes, adapter = SIZES[spec.family], spec.adapter
    fixed, per_pixel = sizes.checkpointed if checkpointing else sizes.sample
    activations = (fixed + per_pixel * (spec.resolution // 8) ** 2) * weight_bytes / 2 * slots * spec.batch_size
    activations *= _DORA if adapter.dora else 1
    activations *= _ALL_TARGETS if adapter.targets == "all" else 1
    activations *= _PRIOR if spec.objective.prior_weight > 0 else 1
    numbers = sizes.lora[adapter.targets] * padded(spec.rank) * slots
    kept = numbers * (_KEPT_BYTES[spec.optimizer] + (4 if spec.optimization.ema_decay else 0))
    step = max(activations + numbers * _APPLIED_BYTES, numbers * _UPDATE_BYTES[spec.optimizer])
    return round((sizes.parameters * weight_bytes + kept + step * _FRAGMENTATION) * share + _RUNTIME_BYTES)


def plan(spec: TrainSpec, device_bytes: int, *, most_slots: int = 1, weight_bytes: int = 2, share: float = 1.0) -> Plan:
    """How `spec` is trained in `device_bytes`: as it is, or, if that does not fit, with gradient checkpointing.

    Raises OutOfMemory, which says what would fit.
    """

    def takes(slots: int, checkpointing: bool) -> int:
        return needed(spec, slots=slots, checkpointing=checkpointing, weight_bytes=weight_bytes, share=share)

    for checkpointing in (False, True):
        ladder = [1 << rung for rung in range(most_slots.bit_length())]
        fitting = [slots for slots in ladder if takes(slots, checkpointing) <= device_bytes]
        if fitting:
            return Plan(fitting[-1], checkpointing, takes(1, checkpointing), device_bytes)
    least = takes(1, True)
    ways = [*_smaller(spec, device_bytes, weight_bytes, share), f"a card with {-(-least // GIB)} GB"]
    raise OutOfMemory(
        f"training {spec.family} at {spec.resolution} px, batch {spec.batch_size}, rank {spec.rank} needs "
        f"{least / GIB:.1f} GB, and this card has {device_bytes / GIB:.1f}: use {' or '.join(ways)}",
        {"needed_bytes": least, "device_bytes": device_bytes},
    )


def _smaller(spec: TrainSpec, device_bytes: int, weight_bytes: int, share: float) -> Iterator[str]:
    """Single changes of the recipe with which it fits, each as small as it can be."""
    for name, values in (
        ("batch_size", range(spec.batch_size - 1, 0, -1)),
        ("resolution", range(spec.resolution - 64, 0, -64)),
        ("rank", [rank for rank in (128, 64, 32, 16, 8, 4) if rank < spec.rank]),
    ):
        for value in values:
            smaller = spec.model_copy(update={name: value})
            if needed(smaller, checkpointing=True, weight_bytes=weight_bytes, share=share) <= device_bytes:
                yield f"{name} {value}"
                break


def share_of(spec: TrainSpec, file_bytes: int) -> float:
    """The size of a base whose denoiser has so many bytes on disk, in 16 or 32 bits, by its family's standard model."""
    share = file_bytes / (2 * SIZES[spec.family].parameters)
    return share / 2 if share > 1.5 else share


def padded(rank: int) -> int:
    """The rank of the stack that a job of `rank` is trained in: the next power of two, at least 4."""
    return max(4, 1 << (rank - 1).bit_length())
