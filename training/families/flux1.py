"""FLUX.1 [dev], [schnell] and [Krea-dev]: a flow-matching transformer over 16-channel latents in patches of 2 x 2.

As in diffusers' pipeline of the model: the caption is the last hidden state of T5, padded to 512 tokens (256 for
[schnell]) that the network sees all, and the pooled output of CLIP. [dev] and [Krea-dev] also take a guidance scale,
for which they were distilled: training gives 1, as sd-scripts does (flux_train_network.md), and drawing 3.5. The
network takes s in 0..1 as its time and predicts n - x.

Times: logit-normal (https://arxiv.org/abs/2403.03206, section 3.1), shifted by e^mu, mu linear in the number of patches
as in sd-scripts (flux_shift). [schnell] draws in four steps because it was distilled: see `training_adapter`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import exp
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from core.errors import BaseModelUnavailable
from training.families import flow, patches
from training.families.encoders import Encoders
from training.families.family import Base, Condition, Draw, FamilyCode, Where
from training.families.latents import decode_scaled, encode_pictures, sample_scaled
from training.families.record import Family
from training.families.training_adapter import as_used as without_adapter
from training.families.training_adapter import merge_adapter
from training.families.weights.parts import config_of, load_part, vae_number
from training.families.weights.quantised import place
from training.ports import Example
from training.tiny.parts import autoencoder, clip_config, clip_tokenizer, flow_scheduler, lessen, lib, t5

MAX_TOKENS, SHORT = 512, 256  # of a caption: [dev], and [schnell]
_CLIP_TOKENS = 77
_LINE = (256, 0.5, 4096, 1.15)  # mu of the shift: patches and mu at both ends
_TRAINED_AT, _DRAWN_AT = 1.0, 3.5  # the guidance scale
_CHANNELS = 64  # of a patch, and nothing else: the models that also take a picture, such as Fill, have more


@dataclass(frozen=True)
class FluxSchedule:
    """How latents are scaled: (z - offset) * scaling, and what the variants differ in."""

    scaling: float
    offset: float
    is_guided: bool  # whether the network takes a guidance scale
    shift: float | None  # of a drawing; None: by the number of patches
    guidance: float = _TRAINED_AT


def load(record: Family, where: Where) -> Base:
    """The frozen base model in `where.folder`, with the training adapter merged. Raises BaseModelUnavailable."""
    config = config_of(where.folder, "transformer")
    if config.get("in_channels", _CHANNELS) != _CHANNELS:
        raise BaseModelUnavailable(
            f"the base model in {where.folder} also takes a picture, such as FLUX.1 Fill: train on FLUX.1 [dev]"
        )
    is_guided = bool(config.get("guidance_embeds", False))
    scheduler = load_part(FlowMatchEulerDiscreteScheduler, where.folder, "scheduler").config
    scaling, offset = (vae_number(where.folder, name) for name in ("scaling_factor", "shift_factor"))
    is_few_step = not is_guided  # [schnell], the only one without
    warnings = []
    if is_few_step and where.training_adapter is None:
        warnings.append(
            "FLUX.1 [schnell] is trained without its training adapter: the LoRA will damage drawing in four steps. Set "
            "the file of the de-distilling training adapter, or train on FLUX.1 [dev]"
        )
    return Base(
        partial(_load_transformer, record, where),
        Encoders(
            {
                "tokenizer": partial(load_part, CLIPTokenizer, where.folder, "tokenizer"),
                "tokenizer_2": partial(load_part, T5Tokenizer, where.folder, "tokenizer_2"),
                "text_encoder": partial(load_part, CLIPTextModel, where.folder, "text_encoder", where.dtype),
                "text_encoder_2": partial(load_part, T5EncoderModel, where.folder, "text_encoder_2", where.dtype),
                "vae": partial(load_part, AutoencoderKL, where.folder, "vae", where.vae_dtype),
            },
            where.device,
        ),
        FluxSchedule(scaling, offset, is_guided, None if scheduler.use_dynamic_shifting else float(scheduler.shift)),
        where.device, where.dtype, "flow", warnings,
        # A scale of 1: no second prediction for the empty caption. The network takes its guidance as a number.
        drawing=(4 if is_few_step else record.previews[0], 1.0),
        training_adapter=where.training_adapter, quantisation=where.quantisation,
    )  # fmt: skip


def _load_transformer(record: Family, where: Where) -> Any:
    transformer = load_part(FluxTransformer2DModel, where.folder, "transformer", where.dtype)
    if where.training_adapter is not None:
        merge_adapter(transformer, where.training_adapter)
    return place(transformer, record.quantised, where.quantisation, where.device)


def _longest(base: Base) -> int:
    return MAX_TOKENS if base.schedule.is_guided else SHORT


def reads_whole(base: Base, caption: str) -> bool:
    """Whether T5 reads a caption to its end. CLIP's part of the condition is only the style of the whole."""
    return bool(len(base.encoders["tokenizer_2"](caption, verbose=False).input_ids) <= _longest(base))


def encode_captions(base: Base, examples: Sequence[Example]) -> list[Condition]:
    """The condition of each picture: `context` [tokens, width of T5] and `pooled` [width of CLIP]."""
    captions = list(dict.fromkeys(example.caption for example in examples))
    contexts, pooled = {}, {}
    with torch.no_grad():
        with base.encoders.awake("text_encoder_2"):
            for caption in captions:
                ids = _ids(base, "tokenizer_2", caption, _longest(base))
                contexts[caption] = base.encoders["text_encoder_2"](ids)[0][0].to(base.dtype)
        with base.encoders.awake("text_encoder"):
            for caption in captions:
                ids = _ids(base, "tokenizer", caption, _CLIP_TOKENS)
                pooled[caption] = base.encoders["text_encoder"](ids).pooler_output[0].to(base.dtype)
    return [{"context": contexts[one.caption], "pooled": pooled[one.caption]} for one in examples]


def _ids(base: Base, tokenizer: str, caption: str, longest: int) -> Tensor:
    tokens = base.encoders[tokenizer](
        caption, padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
    )
    ids: Tensor = tokens.input_ids.to(base.device)
    return ids


def draw(base: Base, moments: Tensor, generator: torch.Generator) -> Draw:
    """Draw scaled latents from moments [B, 32, h, w], normal noise, and s in 0..1: logit-normal, then shifted."""
    latents = sample_scaled(base, moments, generator)
    noise = torch.randn(latents.shape, generator=generator)
    shift = exp(flow.on_line(patches.count((latents.shape[-2], latents.shape[-1])), _LINE))
    return Draw.plain(latents, noise, flow.in_bfloat16(flow.logit_normal(len(latents), generator, shift)))


def predict(base: Base, mixed: Tensor, times: Tensor, conditions: Sequence[Condition]) -> Tensor:
    """The prediction of n - x, [B, 16, h, w]."""
    size = mixed.shape[-2], mixed.shape[-1]
    schedule: FluxSchedule = base.schedule
    context = torch.stack([condition["context"] for condition in conditions])
    predicted: Tensor = base.denoiser(
        hidden_states=patches.split(mixed.to(base.dtype)),
        encoder_hidden_states=context,
        pooled_projections=torch.stack([condition["pooled"] for condition in conditions]),
        timestep=times,
        guidance=torch.full_like(times, schedule.guidance) if schedule.is_guided else None,
        img_ids=patches.places(size, mixed.device),
        txt_ids=torch.zeros(context.shape[1], 3, device=mixed.device),
        return_dict=False,
    )[0]
    return patches.join(predicted, size)


def levels(base: Base, count: int, size: tuple[int, int]) -> Tensor:
    """`count` times from 1 down, evenly spaced and then shifted as in diffusers' pipeline."""
    shift = base.schedule.shift
    if shift is None:
        shift = exp(flow.on_line(patches.count(size), _LINE))
    return flow.shifted(1 - torch.arange(count) / count, shift)


@contextmanager
def as_used(base: Base) -> Iterator[None]:
    """Inside, the base draws as it does for users: with their guidance scale, and without the training adapter."""
    trained = base.schedule
    base.schedule = replace(trained, guidance=_DRAWN_AT)
    try:
        with without_adapter(base):
            yield
    finally:
        base.schedule = trained


def stand_in(transformer: Any, _tokens: int) -> tuple[FluxSchedule, Condition]:
    """A schedule and a condition for counting memory. Every caption has as many tokens."""
    config = transformer.config
    condition = {
        "context": torch.zeros(MAX_TOKENS, config.joint_attention_dim, dtype=transformer.dtype),
        "pooled": torch.zeros(config.pooled_projection_dim, dtype=transformer.dtype),
    }
    return FluxSchedule(1.0, 0.0, bool(config.guidance_embeds), None), condition


def tiny(_prediction: str) -> Any:
    """A tiny pipeline with random weights, see `FamilyCode.tiny`."""
    tokenizer = clip_tokenizer()
    tokenizer_2, text_encoder_2 = t5(32, MAX_TOKENS)
    transformer = lib.FluxTransformer2DModel(
        num_layers=1, num_single_layers=2, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=32,
        pooled_projection_dim=32, axes_dims_rope=(8, 12, 12), guidance_embeds=True,
    )  # fmt: skip
    lessen(transformer.proj_out)
    return lib.FluxPipeline(
        scheduler=flow_scheduler(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
        vae=autoencoder(16, 0.3611, 0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModel(clip_config(32, tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )  # fmt: skip


def family(record: Family) -> FamilyCode:
    """The code of the family."""
    return FamilyCode(
        record,
        load=partial(load, record),
        denoiser=FluxTransformer2DModel,
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
        as_used=as_used,
    )
