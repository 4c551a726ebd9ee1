"""The memory that a training step takes, counted from shapes: the step runs on PyTorch's meta device, which has sizes
but no values, so no weights are needed.

Attention is counted as fused kernels on a card do it (https://arxiv.org/abs/2205.14135): they keep the inputs, the
output, and one number per query.
"""

import gc
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from training import families
from training.engine.lora_layers import LoRALayers
from training.engine.optimizers.by_name import OPTIMIZERS
from training.engine.randomness import generator
from training.engine.step import Batch, Step
from training.families.encoders import Encoders
from training.families.family import Base, Condition, FamilyCode
from training.families.record import Family, Sizes, TextSizes
from training.families.registry import trained_here
from training.families.weights.parts import class_of
from training.families.weights.quantised import linears
from training.memory_plan import padded_ranks
from training.options import Ranks
from training.spec import TrainSpec

_META = torch.device("meta")
TOKENS = 256  # length of a long caption


@dataclass(frozen=True)
class Count:
    """The memory of a training on a device, in bytes."""

    weights: int  # of the denoiser
    adapters: int  # LoRAs of all slots and the state of the optimizer, without gradients
    step: int  # the peak that a step adds: activations, gradients, temporary tensors


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, counts all tensors that operations create: `live` bytes exist now, `most` is the peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {id(one.untyped_storage()) for one in tree_iter((args, kwargs)) if isinstance(one, Tensor)}
        for one in tree_iter(made):
            if isinstance(one, Tensor) and id(one.untyped_storage()) not in given:
                self._count(one.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        if id(storage) in self._known:
            return
        size = _rounded(storage.nbytes())
        self._known.add(id(storage))
        self.live += size
        self.most = max(self.most, self.live)
        weakref.finalize(storage, self._freed, id(storage), size)

    def _freed(self, known: int, size: int) -> None:
        self._known.discard(known)
        self.live -= size


def _rounded(size: int) -> int:
    """The size that CUDA's allocator reserves: a multiple of 512 bytes."""
    return -(-size // 512) * 512


class _Fused(torch.autograd.Function):
    """Attention over [B, heads, tokens, width] with the memory of a fused kernel. The values are undefined."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        made = query.new_empty(*query.shape[:-1], value.shape[-1])
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, made, sums)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        rows = torch.empty_like(query, dtype=torch.float32)  # in which the query's gradient is summed
        made = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        del rows
        return made


class _FusedAttention(TorchFunctionMode):
    """Inside, PyTorch's attention is counted as a fused kernel."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, key, value = args[:3] if len(args) >= 3 else (kwargs[name] for name in ("query", "key", "value"))
            return _Fused.apply(query, key, value)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def count(
    family: FamilyCode, config: Mapping[str, Any], spec: TrainSpec, size: tuple[int, int], *, slots: int = 1,
    dtype: torch.dtype = torch.bfloat16, checkpointing: bool = False, tokens: int = TOKENS,
) -> Count:  # fmt: skip
    """The memory of a step of `spec` on a denoiser with the configuration `config`, with latents of `size` (height,
    width).

    tokens: the length of captions, for families in which they have different lengths.
    """
    with _META:
        denoiser = family.denoiser.from_config(dict(config)).to(dtype).requires_grad_(False).eval()
    if checkpointing:
        denoiser.enable_gradient_checkpointing(_checkpoint)
    with _FusedAttention():
        return measure(family, denoiser, spec, size, slots=slots, tokens=tokens)


def measure(
    family: FamilyCode, denoiser: Any, spec: TrainSpec, size: tuple[int, int], *, slots: int = 1, tokens: int = TOKENS
) -> Count:
    """Like `count`, for an existing denoiser on any device. Wraps its layers."""
    device, dtype = next(denoiser.parameters()).device, denoiser.dtype
    encoders = _text_encoders(family.record, device, dtype) if spec.adapter.text_encoder else {}
    frozen = [part for network in (denoiser, *encoders.values()) for part in network.parameters()]
    weights = sum(_rounded(part.numel() * part.element_size()) for part in frozen)
    layers = LoRALayers(denoiser, family.targets, encoders, family.record.text_targets)
    layout = layers.layout(
        spec.adapter.targets, padded_ranks(spec.ranks), dora=spec.adapter.dora, text_encoder=spec.adapter.text_encoder
    )
    batch = _batch(family, denoiser, spec, size, slots, tokens)
    with device:
        schedule, _ = family.stand_in(denoiser, tokens)
    base = Base(lambda: denoiser, Encoders({}), schedule, device, dtype, "", load_text_encoders=lambda: encoders)
    with Peak() as held:
        stack = OPTIMIZERS[spec.optimizer](slots, layout, device)
        if spec.optimization.ema_decay:
            stack.averages = torch.zeros_like(stack.masters, requires_grad=False)
        step = Step(family, base, layers, layout, stack, None)
        step(batch)  # the first step creates tensors that stay, such as position tables
        gc.collect()
        kept = held.most = held.live
        step(batch)
    return Count(weights, kept, held.most - kept)


def _checkpoint(module: Any, *given: Any) -> Any:
    """Gradient checkpointing as diffusers calls it. The backward pass recomputes outside all modes: re-enter ours."""

    def run(*args: Any) -> Any:
        with _FusedAttention():
            return module(*args)

    return checkpoint(run, *given, use_reentrant=False)


def _batch(family: FamilyCode, denoiser: Any, spec: TrainSpec, size: tuple[int, int], slots: int, tokens: int) -> Batch:
    """A step's batch of zeros on the denoiser's device."""
    samples, device = slots * spec.batch_size, next(denoiser.parameters()).device
    schedule, condition = family.stand_in(denoiser, tokens)
    there = Base(lambda: denoiser, Encoders({}), schedule, torch.device("cpu"), denoiser.dtype, "")
    if spec.adapter.text_encoder:
        condition = _tokens(family.record, condition)
    moments = torch.zeros(samples, 2 * family.record.latent_channels, *size)
    conditions = [{name: value.to(device) for name, value in condition.items()} for _ in range(samples)]
    return Batch(
        family.draw(there, moments, generator(0, "memory", 0)).to(device),
        conditions,
        conditions if spec.objective.prior_weight else [],
        torch.ones(slots, device=device),
        recalls=spec.objective.prior_share > 0,
    )


def _tokens(record: Family, condition: Condition) -> Condition:
    """The condition with tokens instead of what text encoders make of them."""
    names = [f"tokens{part.removeprefix('text_encoder')}" for part in record.parts if part.startswith("text_encoder")]
    tokens = torch.zeros(1, record.caption_tokens, dtype=torch.long)
    return dict.fromkeys(names, tokens) | {name: condition[name] for name in condition if name == "sizes"}


def sizes_of(name: Any) -> Sizes:
    """Count the family's standard model."""
    family = families.find(name)
    config = family.record.configs[family.parts[0]]
    with _META:
        denoiser = family.denoiser.from_config(dict(config))
    large = [layer.weight.numel() for layer in linears(denoiser, family.quantised).values()]
    layers = LoRALayers(denoiser, family.targets)
    sites = {targets: layers.layout(targets, Ranks(4)).sites for targets in family.targets}
    return Sizes(
        parameters=sum(part.numel() for part in denoiser.parameters()),
        quantised=(sum(large), max(large)),
        encoders=_encoders(family.record),
        lora={targets: sum(site.inputs + site.outputs for site in those) for targets, those in sites.items()},
        modules={targets: len(those) for targets, those in sites.items()},
        sample=_line(family, config, checkpointing=False),
        checkpointed=_line(family, config, checkpointing=True),
        spatial=sum(site.inputs + site.outputs for site in sites.get("convolutions", ()) if site.is_spatial),
        text=_text_sizes(family) if family.record.text_targets else None,
    )


def _encoders(record: Family) -> int:
    """The bytes of the family's text encoders in the precision in which training loads them."""
    total = 0
    for part, encoder in _text_encoders(record, _META, torch.float32).items():
        # Training loads a language model without its head.
        used = encoder.model if record.classes[part].endswith("ForCausalLM") else encoder
        total += sum(weights.numel() for weights in used.parameters()) * record.encoder_weight_bytes
    return total


def _text_encoders(record: Family, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The text encoders of the standard model, with undefined values."""
    made = {}
    for part, config in record.configs.items():
        if part.startswith("text_encoder"):
            kind = class_of(record.classes[part])
            with device:
                made[part] = kind(kind.config_class(**config)).to(dtype).requires_grad_(False).eval()
    return made


def _text_sizes(family: FamilyCode) -> TextSizes:
    """Count the text encoders of the standard model, and what they add to a step."""
    record = family.record
    encoders = _text_encoders(record, _META, torch.bfloat16)
    with _META:
        denoiser = family.denoiser.from_config(dict(record.configs[family.parts[0]]))
    layers = LoRALayers(denoiser, family.targets, encoders, record.text_targets)
    sites = [site for site in layers.sites if site.is_text]
    with_text, without = (
        count(
            family, record.configs[family.parts[0]], recipe(family.name, rank=4, adapter={"text_encoder": on}), (64, 64)
        )
        for on in (True, False)
    )
    return TextSizes(
        parameters=sum(part.numel() for encoder in encoders.values() for part in encoder.parameters()),
        lora=sum(site.inputs + site.outputs for site in sites),
        modules=len(sites),
        sample=max(0, with_text.step - without.step),
        work=_text_work(family),
    )


def _text_work(family: FamilyCode) -> int:
    """See `TextSizes.work`: the operations of a step with the text encoders and of one without, counted."""
    side = family.record.price.resolution // family.record.latent_pixels
    config = family.record.configs[family.parts[0]]
    counted: list[int] = []
    for on in (True, False):
        with FlopCounterMode(display=False) as counter:
            count(family, config, recipe(family.name, rank=4, adapter={"text_encoder": on}), (side, side))
        counted.append(counter.get_total_flops())
    return round(1000 * counted[0] / counted[1]) - 1000


def _line(family: FamilyCode, config: Mapping[str, Any], *, checkpointing: bool) -> tuple[int, int]:
    """The bytes of a step per sample, and per latent pixel of a sample: a line through two picture sizes."""
    spec = recipe(family.name, rank=4)
    small, large = (
        count(family, config, spec, (side, side), checkpointing=checkpointing, tokens=TOKENS).step for side in (64, 128)
    )
    slope = (large - small) / (128**2 - 64**2)
    return max(0, round(small - slope * 64**2)), round(slope)


def recipe(family: Any, **given: Any) -> TrainSpec:
    """A recipe of the family, for counting."""
    given = {"optimizer": "adamw", **given}
    return TrainSpec(base_model="counted", family=family, trigger_word="counted", seed=0, **given)


if __name__ == "__main__":
    for each in trained_here():
        print(f"    {each!r}: {sizes_of(each)!r},")
