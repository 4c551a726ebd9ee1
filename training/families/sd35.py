"""Stable Diffusion 3.5 Large and Medium: a two-stream flow-matching transformer with three text encoders.

As in diffusers' pipeline of the model: the caption is the last but one hidden states of both CLIPs side by side, filled
up with zeros to the width of T5, before the last hidden states of T5, all padded and without masks; and the pooled
output of both CLIPs. The network takes 1000 s as its time and predicts n - x.

Times: logit-normal, then shifted (https://arxiv.org/abs/2403.03206, sections 3.1 and 5.3.2) by the shift of the base
model's scheduler, 3, as diffusers' train_dreambooth_lora_sd3.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from core.errors import BaseModelUnavailable
from training.families import flow
from training.families.encoders import Encoders
from training.families.family import Base, Condition, Draw, FamilyCode, Where
from training.families.latents import decode_scaled, encode_pictures, sample_scaled
from training.families.record import Family
from training.families.sd15 import tokenize
from training.families.weights.parts import config_of, load_part, vae_number
from training.families.weights.quantised import place
from training.ports import Example
from training.tiny.parts import autoencoder, clip_config, clip_tokenizer, flow_scheduler, lessen, lib, t5

MAX_TOKENS = 256  # that T5 reads of a caption
_CLIPS = ("", "_2")  # the ends of the names of tokenizers and text encoders


@dataclass(frozen=True)
class Sd35Schedule:
    """How latents are scaled, (z - offset) * scaling, and how times are shifted."""

    scaling: float
    offset: float
    shift: float


def _is_medium(record: Family) -> bool:
    return "dual_attention_layers" in record.configs["transformer"]


def load(record: Family, where: Where) -> Base:
    """The frozen base model in `where.folder`. Raises BaseModelUnavailable."""
    config = config_of(where.folder, "transformer")
    if not config.get("qk_norm") or bool(config.get("dual_attention_layers")) is not _is_medium(record):
        raise BaseModelUnavailable(
            f"the base model in {where.folder} is not of {record.name}: Large has one attention in each block, Medium "
            "has two in the first blocks, and Stable Diffusion 3, which is not supported, has no norms in them"
        )
    scheduler = load_part(FlowMatchEulerDiscreteScheduler, where.folder, "scheduler").config
    scaling, offset = (vae_number(where.folder, name) for name in ("scaling_factor", "shift_factor"))
    kinds: dict[str, tuple[Any, torch.dtype | None]] = {
        "tokenizer": (CLIPTokenizer, None),
        "tokenizer_2": (CLIPTokenizer, None),
        "tokenizer_3": (T5Tokenizer, None),
        "text_encoder": (CLIPTextModelWithProjection, where.dtype),
        "text_encoder_2": (CLIPTextModelWithProjection, where.dtype),
        "text_encoder_3": (T5EncoderModel, where.dtype),
        "vae": (AutoencoderKL, where.vae_dtype),
    }

    def transformer() -> Any:
        loaded = load_part(SD3Transformer2DModel, where.folder, "transformer", where.dtype)
        return place(loaded, record.quantised, where.quantisation, where.device)

    return Base(
        transformer,
        Encoders(
            {part: partial(load_part, kind, where.folder, part, dtype) for part, (kind, dtype) in kinds.items()},
            where.device,
        ),
        Sd35Schedule(scaling, offset, float(scheduler.shift)),
        where.device, where.dtype, "flow", drawing=record.previews, quantisation=where.quantisation,
    )  # fmt: skip


def reads_whole(base: Base, caption: str) -> bool:
    """Whether T5 reads a caption to its end. CLIP's part is only the beginning of it."""
    return bool(len(base.encoders["tokenizer_3"](caption, verbose=False).input_ids) <= MAX_TOKENS)


def encode_captions(base: Base, examples: Sequence[Example]) -> list[Condition]:
    """The condition of each picture: `context` [77 + 256, width of T5] and `pooled` [sum of the widths of CLIP]."""
    captions = list(dict.fromkeys(example.caption for example in examples))
    states: dict[str, list[Tensor]] = {caption: [] for caption in captions}
    pooled: dict[str, list[Tensor]] = {caption: [] for caption in captions}
    contexts = {}
    with torch.no_grad():
        for number in _CLIPS:
            with base.encoders.awake(f"text_encoder{number}"):
                tokenizer, encoder = base.encoders[f"tokenizer{number}"], base.encoders[f"text_encoder{number}"]
                for caption in captions:
                    output = encoder(tokenize(tokenizer, encoder, caption).to(base.device), output_hidden_states=True)
                    states[caption].append(output.hidden_states[-2][0])
                    pooled[caption].append(output.text_embeds[0])
        with base.encoders.awake("text_encoder_3"):
            for caption in captions:
                ids = base.encoders["tokenizer_3"](
                    caption, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
                ).input_ids.to(base.device)
                long = base.encoders["text_encoder_3"](ids)[0][0]
                short = torch.cat(states[caption], dim=-1)
                filled = functional.pad(short, (0, long.shape[-1] - short.shape[-1]))
                contexts[caption] = torch.cat([filled, long]).to(base.dtype)
    return [
        {"context": contexts[one.caption], "pooled": torch.cat(pooled[one.caption]).to(base.dtype)} for one in examples
    ]


def draw(base: Base, moments: Tensor, generator: torch.Generator) -> Draw:
    """Draw scaled latents from moments [B, 32, h, w], normal noise, and s in 0..1: logit-normal, then shifted."""
    schedule: Sd35Schedule = base.schedule
    latents = sample_scaled(base, moments, generator)
    noise = torch.randn(latents.shape, generator=generator)
    return Draw.plain(latents, noise, flow.logit_normal(len(latents), generator, schedule.shift))


def predict(base: Base, mixed: Tensor, times: Tensor, conditions: Sequence[Condition]) -> Tensor:
    """The prediction of n - x, [B, 16, h, w]."""
    predicted: Tensor = base.denoiser(
        hidden_states=mixed.to(base.dtype),
        encoder_hidden_states=torch.stack([condition["context"] for condition in conditions]),
        pooled_projections=torch.stack([condition["pooled"] for condition in conditions]),
        timestep=1000 * times,
        return_dict=False,
    )[0]
    return predicted


def levels(base: Base, count: int, _size: tuple[int, int]) -> Tensor:
    """`count` times from 1 down, evenly spaced to the last of the scheduler's, then shifted as in diffusers."""
    shift: float = base.schedule.shift
    last = float(flow.shifted(torch.tensor(0.001), shift))
    return flow.shifted(torch.linspace(1.0, last, count), shift)


def stand_in(transformer: Any, _tokens: int) -> tuple[Sd35Schedule, Condition]:
    """A schedule and a condition for counting memory. Every caption has as many tokens."""
    config = transformer.config
    condition = {
        "context": torch.zeros(77 + MAX_TOKENS, config.joint_attention_dim, dtype=transformer.dtype),
        "pooled": torch.zeros(config.pooled_projection_dim, dtype=transformer.dtype),
    }
    return Sd35Schedule(1.0, 0.0, 3.0), condition


def tiny(record: Family, _prediction: str) -> Any:
    """A tiny pipeline with random weights, see `FamilyCode.tiny`."""
    tokenizer, (tokenizer_3, text_encoder_3) = clip_tokenizer(), t5(96, MAX_TOKENS)
    transformer = lib.SD3Transformer2DModel(
        sample_size=32, num_layers=2, attention_head_dim=32, num_attention_heads=2, caption_projection_dim=64,
        joint_attention_dim=96, pooled_projection_dim=80, pos_embed_max_size=64, qk_norm="rms_norm",
        dual_attention_layers=(0,) if _is_medium(record) else (),
    )  # fmt: skip
    lessen(transformer.proj_out)
    return lib.StableDiffusion3Pipeline(
        scheduler=flow_scheduler(shift=3.0),
        vae=autoencoder(16, 1.5305, 0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(clip_config(32, tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(clip_config(48, tokenizer)),
        tokenizer_2=tokenizer,
        text_encoder_3=text_encoder_3,
        tokenizer_3=tokenizer_3,
        transformer=transformer,
    )


def family(record: Family) -> FamilyCode:
    """The code of the family."""
    return FamilyCode(
        record,
        load=partial(load, record),
        denoiser=SD3Transformer2DModel,
        stand_in=stand_in,
        tiny=partial(tiny, record),
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
    )
