"""The device memory that a training takes, and how to make it fit: slots, gradient checkpointing, and a base in 8 or 4
bits.

Computed before the first step, and without torch, so that a quote can use it too. The numbers come from
`python -m training.engine.memory_count`, which counts shapes; a test compares them with it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from core.errors import OutOfMemory
from training.families.record import Sizes
from training.families.registry import FAMILIES
from training.options import Quantisation, Ranks
from training.spec import TrainSpec

GIB = 2**30
# Memory of PyTorch, cuBLAS and cuDNN; and a factor on a step's memory for what the allocator cannot use.
_RUNTIME_BYTES, _FRAGMENTATION = 0.75 * GIB, 1.08
# Bytes per number of a LoRA: float32 weights and the optimizer's state. An average takes 4 more.
_KEPT_BYTES = {"adamw": 12, "adamw8bit": 6.1, "prodigy": 20}
# During a step, also the copies that layers apply; at its end, also the gradient and the update's temporary tensors.
_APPLIED_BYTES, _UPDATE_BYTES = 4, {"adamw": 16, "adamw8bit": 48, "prodigy": 24}
# Upper bounds of the factors by which options raise a step's activations. A quantised layer keeps its input even
# without a LoRA, so a quantised base counts like the target set `all`.
_DORA, _ALL_TARGETS, _PRIOR = 1.5, 1.25, 2.1
# Bytes per quantised weight: 8 bits with a float32 per row; 4 bits with a byte per 64 weights, and a little more.
_QUANTISED_BYTES = {"8bit": 1.005, "4bit": 0.517}
QUANTISATIONS: tuple[Quantisation, ...] = ("none", "8bit", "4bit")


@dataclass(frozen=True)
class Plan:
    """How a training runs on a device, and the memory that it takes."""

    slots: int  # the most jobs in one step
    checkpointing: bool
    quantisation: Quantisation
    needed_bytes: int  # by this job alone
    device_bytes: int

    def __str__(self) -> str:
        """For the log: `needs 13.6 GB, this card has 16.0 (1 slot, gradient checkpointing)`."""
        how = f"{self.slots} slot{'s' if self.slots > 1 else ''}"
        if self.checkpointing:
            how += ", gradient checkpointing"
        if self.quantisation != "none":
            how += f", base in {self.quantisation.removesuffix('bit')} bits"
        return f"needs {self.needed_bytes / GIB:.1f} GB, this card has {self.device_bytes / GIB:.1f} ({how})"


def needed(
    spec: TrainSpec, *, slots: int = 1, checkpointing: bool = False, quantisation: Quantisation = "none",
    weight_bytes: int = 2, share: float = 1.0,
) -> int:  # fmt: skip
    """The peak memory of `slots` jobs of `spec` in bytes, while captions are encoded or in a step.

    weight_bytes: per weight of the base that is not quantised, 2 or 4. share: the size of the base relative to its
    family's standard model.
    """
    sizes, adapter = sizes_of(spec.family), spec.adapter
    is_quantised = quantisation != "none"
    fixed, per_pixel = sizes.checkpointed if checkpointing else sizes.sample
    text = sizes.text if adapter.text_encoder else None
    fixed += text.sample if text is not None else 0
    activations = (
        (fixed + per_pixel * (spec.resolution // FAMILIES[spec.family].latent_pixels) ** 2)
        * weight_bytes
        / 2
        * slots
        * spec.batch_size
    )
    activations *= _DORA if adapter.dora else 1
    activations *= _ALL_TARGETS if adapter.targets != "attention" or is_quantised else 1
    activations *= _PRIOR if spec.objective.prior_weight > 0 else 1
    weights = (sizes.parameters + (text.parameters if text is not None else 0)) * weight_bytes
    if is_quantised:
        quantised, largest = sizes.quantised
        weights += round(quantised * (_QUANTISED_BYTES[quantisation] - weight_bytes))
        activations += largest * (weight_bytes + 4)  # the layer in use, dequantised through float32
    numbers = _numbers(sizes, spec) * slots
    kept = numbers * (_KEPT_BYTES[spec.optimizer] + (4 if spec.optimization.ema_decay else 0))
    if spec.validation.held_out or spec.validation.previews:
        kept += numbers * (4 + weight_bytes)  # an evaluation's copy of the weights, and as its layers apply them
    step = max(activations + numbers * _APPLIED_BYTES, numbers * _UPDATE_BYTES[spec.optimizer])
    most = max(weights + kept + step * _FRAGMENTATION, sizes.encoders)
    return round(most * share + _RUNTIME_BYTES)


def _numbers(sizes: Sizes, spec: TrainSpec) -> int:
    """The numbers of one LoRA in its slot."""
    ranks = padded_ranks(spec.ranks)
    spatial = sizes.spatial if spec.adapter.targets == "convolutions" else 0
    plain = sizes.lora[spec.adapter.targets] - spatial
    plain += sizes.text.lora if spec.adapter.text_encoder and sizes.text is not None else 0
    return plain * ranks.plain + spatial * ranks.of(spatial=True)


def plan(
    spec: TrainSpec, device_bytes: int, *, most_slots: int = 1, weight_bytes: int = 2, share: float = 1.0,
    quantisations: Sequence[Quantisation] = QUANTISATIONS,
) -> Plan:  # fmt: skip
    """Fit `spec` into `device_bytes`: as it is, else with gradient checkpointing, else on a base in fewer bits.

    quantisations: the allowed ones, most bits first. Raises OutOfMemory, with changes that would make it fit.
    """

    def takes(slots: int, checkpointing: bool, quantisation: Quantisation) -> int:
        return needed(
            spec, slots=slots, checkpointing=checkpointing, quantisation=quantisation, weight_bytes=weight_bytes,
            share=share,
        )  # fmt: skip

    ladder = [1 << rung for rung in range(most_slots.bit_length())]
    for quantisation in quantisations:
        for checkpointing in (False, True):
            fitting = [slots for slots in ladder if takes(slots, checkpointing, quantisation) <= device_bytes]
            if fitting:
                alone = takes(1, checkpointing, quantisation)
                return Plan(fitting[-1], checkpointing, quantisation, alone, device_bytes)
    fewest = quantisations[-1]
    least = takes(1, True, fewest)
    ways = list(_smaller(spec, device_bytes, weight_bytes, share, fewest))
    others = [kind for kind in QUANTISATIONS if kind not in quantisations and takes(1, True, kind) <= device_bytes]
    ways += [f"IMPRINT_QUANTISE_BASE={kind}" for kind in others[:1]]
    ways.append(f"a card with {-(-least // GIB)} GB")
    raise OutOfMemory(
        f"training {spec.family} at {spec.resolution} px, batch {spec.batch_size}, rank {spec.rank} needs "
        f"{least / GIB:.1f} GB, and this card has {device_bytes / GIB:.1f}: use {' or '.join(ways)}",
        {"needed_bytes": least, "device_bytes": device_bytes},
    )


def _smaller(
    spec: TrainSpec, device_bytes: int, weight_bytes: int, share: float, quantisation: Quantisation
) -> Iterator[str]:
    """Single changes of the recipe with which it would fit, each as small as possible."""
    for name, values in (
        ("batch_size", range(spec.batch_size - 1, 0, -1)),
        ("resolution", range(spec.resolution - 64, 0, -64)),
        ("rank", [rank for rank in (128, 64, 32, 16, 8, 4) if rank < spec.rank]),
    ):
        for value in values:
            smaller = spec.model_copy(update={name: value})
            takes = needed(
                smaller, checkpointing=True, quantisation=quantisation, weight_bytes=weight_bytes, share=share
            )
            if takes <= device_bytes:
                yield f"{name} {value}"
                break


def share_of(spec: TrainSpec, file_bytes: int) -> float:
    """The size of a denoiser relative to its family's standard model, from its bytes on disk in 16 or 32 bits."""
    share = file_bytes / (2 * sizes_of(spec.family).parameters)
    return share / 2 if share > 1.5 else share


def sizes_of(family: str) -> Sizes:
    """The sizes of a family that is trained here."""
    sizes = FAMILIES[family].sizes
    assert sizes is not None, family  # noqa: S101 - a test holds that every family that is trained here has them
    return sizes


def padded(rank: int) -> int:
    """The padded rank of a job's slot: the next power of two, at least 4."""
    return max(4, 1 << (rank - 1).bit_length())


def padded_ranks(ranks: Ranks) -> Ranks:
    """The padded ranks of a job's slot."""
    return Ranks(padded(ranks.plain), None if ranks.spatial is None else padded(ranks.spatial))
