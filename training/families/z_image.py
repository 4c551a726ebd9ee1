"""Z-Image: a single-stream transformer of flow matching over 16-channel latents, told by a Qwen3 language model.

Flow matching (https://arxiv.org/abs/2210.02747; with the shift of https://arxiv.org/abs/2403.03206, section 5.3.2):
x_s = (1 - s) x + s n, and the network says n - x. Diffusers' model wants 1 - s as its time and says x - n: see the
signs in `predict`. s is drawn uniformly and shifted towards noise: s = f u / (1 + (f - 1) u), f from the scheduler, 3.0
by default.

Z-Image-Turbo draws in 8 steps because it was distilled; training it as if it were not destroys that. With a
de-distilling training adapter (a LoRA) merged while training, what we learn fits the distilled model, and the adapter
is never in our file.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2Tokenizer, Qwen3Model

from core.errors import BaseModelUnavailable, LoraInvalid
from training.families.encoders import Encoders
from training.families.family import Base, Condition, Draw, Family, Where
from training.families.latents import encode_pictures, sample
from training.families.parts import load_part, vae_number
from training.families.quantised import place
from training.lora import formats
from training.lora.reading import read_lora
from training.options import MIN_SNR_GAMMA
from training.ports import Example

MAX_TOKENS = 512  # what diffusers' pipeline reads of a prompt
# In the main blocks and in the two refiners before them.
QUANTISED = r"(layers|noise_refiner|context_refiner)\.\d+\.(attention\.to_(q|k|v|out\.0)|feed_forward\.w[123])"


@dataclass(frozen=True)
class FlowSchedule:
    """The shift towards noise, and how latents are scaled: (z - offset) * scaling."""

    shift: float
    scaling: float
    offset: float


def load(where: Where) -> Base:
    """The base model in `where.folder`, frozen, with the training adapter merged. Raises BaseModelUnavailable."""
    shift = float(load_part(FlowMatchEulerDiscreteScheduler, where.folder, "scheduler").config.shift)
    scaling, offset = (vae_number(where.folder, name) for name in ("scaling_factor", "shift_factor"))
    warnings = []
    if where.distilled and where.training_adapter is None:
        warnings.append(
            "Z-Image-Turbo is trained without its training adapter: the LoRA will damage its 8-step drawing. Give the "
            "de-distilling training adapter's file, or train on the undistilled Z-Image base"
        )
    # As its makers draw with it: the few-step model without guidance.
    drawing = (9, 1.0) if where.distilled else (28, 5.0)
    return Base(
        partial(_load_transformer, where),
        Encoders(
            {
                "tokenizer": partial(load_part, Qwen2Tokenizer, where.folder, "tokenizer"),
                "text_encoder": partial(load_part, Qwen3Model, where.folder, "text_encoder", where.dtype),
                "vae": partial(load_part, AutoencoderKL, where.folder, "vae", where.vae_dtype),
            },
            where.device,
        ),
        FlowSchedule(shift, scaling, offset), where.device, where.dtype, "flow", warnings,
        drawing=drawing, training_adapter=where.training_adapter, quantisation=where.quantisation,
    )  # fmt: skip


def _load_transformer(where: Where) -> Any:
    transformer = load_part(ZImageTransformer2DModel, where.folder, "transformer", where.dtype)
    if where.training_adapter is not None:
        merge_adapter(transformer, where.training_adapter)
    return place(transformer, QUANTISED, where.quantisation, where.device)


def merge_adapter(transformer: Any, path: Path) -> int:
    """Add the LoRA in `path` to the transformer's own weights, at strength +1; gives the number of layers changed.

    Raises BaseModelUnavailable if the file cannot be read or does not fit.
    """
    count = 0
    try:
        for layer, a, b in _adapter(transformer, path):
            change = b @ a
            if change.shape != layer.weight.shape or not change.isfinite().all():
                raise ValueError("a layer has another shape, or numbers that are not finite")
            layer.weight.add_(change.to(layer.weight))
            count += 1
    except (LoraInvalid, OSError, ValueError, AttributeError, KeyError, RuntimeError) as error:
        raise BaseModelUnavailable(
            f"the training adapter {path} does not fit the base model ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    return count


def _adapter(transformer: Any, path: Path) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """The layers that a training adapter changes, each with its A [rank, in] and B [out, rank], scaled.

    Raises LoraInvalid for a file that is broken, or holds anything that would be lost.
    """
    lora = read_lora(path)
    formats.refuse_other(lora)
    for module in lora.modules.values():
        if module.magnitude is not None:
            raise LoraInvalid(f"{path.name} is a DoRA: a training adapter must be a LoRA")
        layer = transformer.get_submodule(module.name.module)
        a, b = (torch.from_numpy(part.floats().copy()) for part in (module.down, module.up))
        yield getattr(layer, "base_layer", layer), a, b * module.scale


@contextmanager
def as_used(base: Base) -> Iterator[None]:
    """Inside, every layer that the training adapter was merged into gives what it would without it.

    The adapter's product is taken off each output, so no weight changes: a base may be quantised, and its steps
    recorded.
    """
    if base.training_adapter is None:
        yield
        return
    if base.adapter is None:
        base.adapter = [
            (layer, a.to(base.device, base.dtype), b.to(base.device, base.dtype))
            for layer, a, b in _adapter(base.denoiser, base.training_adapter)
        ]
    hooks = [layer.register_forward_hook(partial(_without, a, b)) for layer, a, b in base.adapter]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _without(a: Tensor, b: Tensor, _: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """A layer's output without the adapter's product."""
    return output - functional.linear(functional.linear(inputs[0], a), b)


def encode_captions(base: Base, examples: Sequence[Example]) -> list[Condition]:
    """`context` [tokens of the caption, width] of each picture, made as diffusers' pipeline makes it."""
    tokenizer, encoder = base.encoders["tokenizer"], base.encoders["text_encoder"]
    made: dict[str, Tensor] = {}
    with base.encoders.awake("text_encoder"), torch.no_grad():
        for caption in dict.fromkeys(example.caption for example in examples):
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": caption}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=True,
            )
            read = tokenizer(
                [text], padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
            ).to(base.device)
            mask = read.attention_mask.bool()
            states = encoder(input_ids=read.input_ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
            made[caption] = states[0][mask[0]].to(base.dtype)
    return [{"context": made[example.caption]} for example in examples]


def draw(base: Base, moments: Tensor, generator: torch.Generator) -> Draw:
    """Scaled latents from moments [B, 2C, h, w], normal noise, and s in 0..1, uniform, then shifted towards noise."""
    schedule: FlowSchedule = base.schedule
    latents = (sample(moments, generator) - schedule.offset) * schedule.scaling
    noise = torch.randn(latents.shape, generator=generator)
    return Draw.plain(latents, noise, shifted(torch.rand(len(latents), generator=generator), schedule.shift))


def shifted(uniform: Tensor, shift: float) -> Tensor:
    """s of u: 0 and 1 stay, all between move towards noise for shift > 1."""
    return shift * uniform / (1 + (shift - 1) * uniform)


def mix(base: Base, made: Draw) -> Tensor:
    """x_s of every sample, [B, C, h, w]."""
    s = made.times.view(-1, 1, 1, 1)
    return (1 - s) * made.latents + s * made.noise


def target(base: Base, made: Draw) -> Tensor:
    """The way from picture to noise, which the network should say: [B, C, h, w]."""
    return made.noise - made.latents


def predict(base: Base, mixed: Tensor, times: Tensor, conditions: Sequence[Condition]) -> Tensor:
    """n - x as the transformer has it, [B, C, h, w]: it says x - n."""
    frames = list(mixed.to(base.dtype).unsqueeze(2).unbind(0))
    contexts = [condition["context"] for condition in conditions]
    said = base.denoiser(frames, 1 - times, contexts, return_dict=False)[0]
    return -torch.stack(list(said)).squeeze(2)


def weigh(base: Base, times: Tensor, weighting: str) -> Tensor:
    """How much samples at these times count, [B] float32; as in diffusion.py, with SNR = ((1 - s) / s)^2.

    An error of n - x is that of the clean latents over s^2; of the noise, over (1 - s)^2. So min_snr is
    min((1 - s)^2, 5 s^2), and debiased s (1 - s).
    """
    s = times.cpu().double()
    if weighting == "min_snr":
        return torch.minimum((1 - s) ** 2, MIN_SNR_GAMMA * s**2).float()
    return (s * (1 - s)).float() if weighting == "debiased" else torch.ones(len(s))


def levels(base: Base, count: int) -> Tensor:
    """`count` times from 1 down, evenly spread before the shift."""
    return shifted(1 - torch.arange(count) / count, base.schedule.shift)


def denoise(base: Base, mixed: Tensor, said: Tensor, now: Tensor, then: Tensor | None) -> Tensor:
    """One step of Euler along the flow, all [B, C, h, w]."""
    return mixed + ((0.0 if then is None else then) - now) * said.float()


def unscale(base: Base, latents: Tensor) -> Tensor:
    """Latents as the VAE decodes them."""
    schedule: FlowSchedule = base.schedule
    return latents / schedule.scaling + schedule.offset


def stand_in(transformer: Any, tokens: int) -> tuple[FlowSchedule, Condition]:
    """A schedule, and a caption of so many tokens in shapes alone."""
    width = transformer.config.cap_feat_dim
    return FlowSchedule(3.0, 1.0, 0.0), {"context": torch.zeros(tokens, width, dtype=transformer.dtype)}


FAMILY = Family(
    name="z-image",
    parts=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
    # The linears of the main blocks; the two refiners before them stay as they are, as in ai-toolkit's LoRAs.
    targets={
        "attention": r"layers\.\d+\.(attention\.to_(q|k|v|out\.0)|feed_forward\.w[123])",
        "all": r"layers\.\d+\.(attention\.to_(q|k|v|out\.0)|feed_forward\.w[123]|adaLN_modulation\.0)",
    },
    quantised=QUANTISED,
    load=load,
    denoiser=ZImageTransformer2DModel,
    stand_in=stand_in,
    encode_pictures=encode_pictures,
    encode_captions=encode_captions,
    draw=draw,
    mix=mix,
    predict=predict,
    target=target,
    weigh=weigh,
    levels=levels,
    denoise=denoise,
    unscale=unscale,
    as_used=as_used,
    shares_steps=False,
)
