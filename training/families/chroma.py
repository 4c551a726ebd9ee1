"""Chroma: FLUX.1 with the modulation of all blocks computed by one small network, and with T5 alone for captions.

As in its makers' code and in ComfyUI: the network sees the tokens of a caption and one token of padding, which is what
its mask leaves of the 512. T5 itself is given its mask. The network takes s in 0..1 as its time and predicts n - x; it
is not distilled, so there is no guidance scale in training.

Times: logit-normal (https://arxiv.org/abs/2403.03206, section 3.1), as ai-toolkit and sd-scripts draw them for it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import exp
from typing import Any

import torch
from diffusers import AutoencoderKL, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.nn import functional
from transformers import T5EncoderModel, T5Tokenizer

from training.families import flow, patches
from training.families.encoders import Encoders
from training.families.family import Base, Condition, Draw, FamilyCode, Where
from training.families.latents import decode_scaled, encode_pictures, sample_scaled
from training.families.record import Family
from training.families.weights.parts import load_part, vae_number
from training.families.weights.quantised import place
from training.ports import Example
from training.tiny.parts import autoencoder, flow_scheduler, lessen, lib, t5

MAX_TOKENS = 512  # of a caption


@dataclass(frozen=True)
class ChromaSchedule:
    """How latents are scaled, (z - offset) * scaling, and how the times of a drawing are shifted."""

    scaling: float
    offset: float
    shift: float | None  # None: e^mu, mu on the line
    line: tuple[int, float, int, float] = (256, 0.5, 4096, 1.15)  # patches and mu at both ends


def load(record: Family, where: Where) -> Base:
    """The frozen base model in `where.folder`. Raises BaseModelUnavailable."""
    scheduler = load_part(FlowMatchEulerDiscreteScheduler, where.folder, "scheduler").config
    scaling, offset = (vae_number(where.folder, name) for name in ("scaling_factor", "shift_factor"))

    def transformer() -> Any:
        loaded = load_part(ChromaTransformer2DModel, where.folder, "transformer", where.dtype)
        return place(loaded, record.quantised, where.quantisation, where.device)

    return Base(
        transformer,
        Encoders(
            {
                "tokenizer": partial(load_part, T5Tokenizer, where.folder, "tokenizer"),
                "text_encoder": partial(load_part, T5EncoderModel, where.folder, "text_encoder", where.dtype),
                "vae": partial(load_part, AutoencoderKL, where.folder, "vae", where.vae_dtype),
            },
            where.device,
        ),
        ChromaSchedule(
            scaling, offset, None if scheduler.use_dynamic_shifting else float(scheduler.shift),
            (scheduler.base_image_seq_len, scheduler.base_shift, scheduler.max_image_seq_len, scheduler.max_shift),
        ),
        where.device, where.dtype, "flow", drawing=record.previews, quantisation=where.quantisation,
    )  # fmt: skip


def reads_whole(base: Base, caption: str) -> bool:
    """Whether T5 reads a caption to its end."""
    return bool(len(base.encoders["tokenizer"](caption, verbose=False).input_ids) <= MAX_TOKENS)


def encode_captions(base: Base, examples: Sequence[Example]) -> list[Condition]:
    """The condition of each picture: `context` [tokens of the caption and one of padding, width of T5]."""
    tokenizer, encoder = base.encoders["tokenizer"], base.encoders["text_encoder"]
    made: dict[str, Tensor] = {}
    with base.encoders.awake("text_encoder"), torch.no_grad():
        for caption in dict.fromkeys(example.caption for example in examples):
            tokens = tokenizer(
                caption, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
            ).to(base.device)
            states = encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0][0]
            made[caption] = states[: int(tokens.attention_mask.sum()) + 1].to(base.dtype)
    return [{"context": made[example.caption]} for example in examples]


def draw(base: Base, moments: Tensor, generator: torch.Generator) -> Draw:
    """Draw scaled latents from moments [B, 32, h, w], normal noise, and s in 0..1: logit-normal."""
    latents = sample_scaled(base, moments, generator)
    noise = torch.randn(latents.shape, generator=generator)
    return Draw.plain(latents, noise, flow.in_bfloat16(flow.logit_normal(len(latents), generator, 1.0)))


def predict(base: Base, mixed: Tensor, times: Tensor, conditions: Sequence[Condition]) -> Tensor:
    """The prediction of n - x, [B, 16, h, w]. Captions of different lengths are padded and masked."""
    size = mixed.shape[-2], mixed.shape[-1]
    contexts = [condition["context"] for condition in conditions]
    longest = max(len(context) for context in contexts)
    lengths = [len(context) for context in contexts]
    mask = None
    if min(lengths) < longest:
        used = torch.arange(longest + patches.count(size), device=mixed.device)
        mask = _added(torch.stack([(used < length) | (used >= longest) for length in lengths]), base.dtype)
    with _checkpointed_with(base.denoiser, mask):
        predicted: Tensor = base.denoiser(
            hidden_states=patches.split(mixed.to(base.dtype)),
            encoder_hidden_states=torch.stack(
                [functional.pad(context, (0, 0, 0, longest - len(context))) for context in contexts]
            ),
            timestep=times,
            img_ids=patches.places(size, mixed.device),
            txt_ids=torch.zeros(longest, 3, device=mixed.device),
            attention_mask=mask,
            return_dict=False,
        )[0]
    return patches.join(predicted, size)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers whose product for two tokens the network adds to their attention, from a mask of those in use.

    1 for a token in use, which changes nothing between such tokens, and -200 for one of padding, to which a token in
    use then does not attend. Padding still attends to padding, so that no token attends to nothing.
    """
    return torch.where(mask, 1.0, -200.0).to(dtype)


@contextmanager
def _checkpointed_with(network: Any, mask: Tensor | None) -> Iterator[None]:
    """Inside, gradient checkpointing passes the mask to the single blocks too, which diffusers 0.42 forgets."""
    if mask is None or not network.gradient_checkpointing:
        yield
        return
    run: Callable[..., Any] = network._gradient_checkpointing_func
    network._gradient_checkpointing_func = lambda block, *given: run(
        block, *given, *([mask] if len(given) == 3 else [])
    )
    try:
        yield
    finally:
        network._gradient_checkpointing_func = run


def mend_pipeline(pipeline: Any) -> None:
    """Mask padding: diffusers 0.42 adds its mask of 1 and 0 to attention (huggingface/diffusers issue 13619)."""

    def masked(_network: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        mask: Tensor | None = named.get("attention_mask")
        return given, named if mask is None else {**named, "attention_mask": _added(mask == 1, mask.dtype)}

    pipeline.transformer.register_forward_pre_hook(masked, with_kwargs=True)


def levels(base: Base, count: int, size: tuple[int, int]) -> Tensor:
    """`count` times from 1 down, evenly spaced and then shifted as in diffusers' pipeline."""
    schedule: ChromaSchedule = base.schedule
    shift = schedule.shift
    if shift is None:
        shift = exp(flow.on_line(patches.count(size), schedule.line))
    return flow.shifted(1 - torch.arange(count) / count, shift)


def stand_in(transformer: Any, tokens: int) -> tuple[ChromaSchedule, Condition]:
    """A schedule and a condition of `tokens` tokens for counting memory."""
    context = torch.zeros(tokens, transformer.config.joint_attention_dim, dtype=transformer.dtype)
    return ChromaSchedule(1.0, 0.0, None), {"context": context}


def tiny(_prediction: str) -> Any:
    """A tiny pipeline with random weights, see `FamilyCode.tiny`."""
    tokenizer, text_encoder = t5(32, MAX_TOKENS)
    transformer = lib.ChromaTransformer2DModel(
        num_layers=1, num_single_layers=2, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=32,
        axes_dims_rope=(8, 12, 12), approximator_num_channels=64, approximator_hidden_dim=32, approximator_layers=1,
    )  # fmt: skip
    lessen(transformer.proj_out)
    return lib.ChromaPipeline(
        scheduler=flow_scheduler(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
        vae=autoencoder(16, 0.3611, 0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )  # fmt: skip


def family(record: Family) -> FamilyCode:
    """The code of the family."""
    return FamilyCode(
        record,
        load=partial(load, record),
        denoiser=ChromaTransformer2DModel,
        stand_in=stand_in,
        tiny=tiny,
        encode_pictures=encode_pictures,
        encode_captions=encode_captions,
        reads_whole=reads_whole,
        draw=draw,
        mix=flow.mix,
        predict=predict,
        target=flow.target,
        weigh=flow.weigh,
        levels=levels,
        denoise=flow.denoise,
        decode=decode_scaled,
        mend_pipeline=mend_pipeline,
    )
