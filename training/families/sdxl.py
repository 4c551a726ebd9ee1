"""Stable Diffusion XL: one UNet, two CLIP text encoders, and the picture's sizes as a condition.

The UNet is conditioned on the picture's original size, its crop offset and its target size
(https://arxiv.org/abs/2307.01952, section 2.2). Training pictures are already prepared, so original and target size are
equal and the offset is (0, 0).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from core.errors import BaseModelUnavailable
from training.families import diffusion, sd15
from training.families.encoders import Encoders
from training.families.family import Base, Condition, FamilyCode, Where
from training.families.record import Family
from training.families.sd15 import has_room, tokenize
from training.families.weights.parts import config_of, load_part
from training.families.weights.quantised import place
from training.ports import Example
from training.tiny.parts import autoencoder, clip_config, clip_tokenizer, lib, noise_scheduler

_BOTH = ("", "_2")  # the ends of the names of tokenizers and text encoders


def load(record: Family, where: Where) -> Base:
    """The frozen base model in `where.folder`. Loads only its schedule. Raises BaseModelUnavailable."""
    config = config_of(where.folder, "unet")
    if config.get("addition_embed_type") != "text_time" or config.get("in_channels") != 4:
        raise BaseModelUnavailable(
            f"the UNet in {where.folder} is not one of sdxl (in_channels {config.get('in_channels')}, "
            f"addition_embed_type {config.get('addition_embed_type')}): it may be of another family, or for inpainting"
        )
    kinds: dict[str, tuple[Any, torch.dtype | None]] = {
        "tokenizer": (CLIPTokenizer, None),
        "tokenizer_2": (CLIPTokenizer, None),
        "text_encoder": (CLIPTextModel, torch.float32),
        "text_encoder_2": (CLIPTextModelWithProjection, torch.float32),
        "vae": (AutoencoderKL, where.vae_dtype),
    }
    schedule = diffusion.load_schedule(where)
    return Base(
        lambda: place(
            load_part(UNet2DConditionModel, where.folder, "unet", where.dtype), record.quantised, where.quantisation,
            where.device,
        ),
        Encoders(
            {part: partial(load_part, kind, where.folder, part, dtype) for part, (kind, dtype) in kinds.items()},
            where.device,
        ),
        schedule, where.device, where.dtype, schedule.prediction, drawing=record.previews,
        quantisation=where.quantisation, load_text_encoders=sd15.text_encoders(record, where),
    )  # fmt: skip


def reads_whole(base: Base, caption: str) -> bool:
    """Whether both text encoders read a caption to its end."""
    return all(has_room(base.encoders[part], caption) for part in ("tokenizer", "tokenizer_2"))


def encode_captions(base: Base, examples: Sequence[Example]) -> list[Condition]:
    """The condition of each picture, with three parts.

    `context` [1, tokens, sum of both widths], the last but one hidden states of both text encoders; `pooled`
    [1, width], the text embedding of the second one; `sizes` [1, 6].
    """
    made: dict[str, tuple[Tensor, Tensor]] = {}
    with base.encoders.awake("text_encoder", "text_encoder_2"), torch.no_grad():
        for caption in dict.fromkeys(example.caption for example in examples):
            states = []
            for number in _BOTH:
                encoder = base.encoders[f"text_encoder{number}"]
                ids = tokenize(base.encoders[f"tokenizer{number}"], encoder, caption).to(base.device)
                output = encoder(ids, output_hidden_states=True)
                states.append(output.hidden_states[-2])
            made[caption] = torch.cat(states, dim=-1), output.text_embeds
    return [
        {
            "context": made[example.caption][0].to(base.dtype),
            "pooled": made[example.caption][1].to(base.dtype),
            "sizes": _sizes(base, example),
        }
        for example in examples
    ]


def _sizes(base: Base, example: Example) -> Tensor:
    return torch.tensor(
        [[example.height, example.width, 0, 0, example.height, example.width]], dtype=torch.float32, device=base.device
    )


def tokenize_captions(base: Base, examples: Sequence[Example]) -> list[Condition]:
    """The condition of each picture: `tokens` and `tokens_2` [1, 77], of both tokenizers, and `sizes` [1, 6]."""
    pairs = {number: (base.encoders[f"tokenizer{number}"], base.encoders[f"text_encoder{number}"]) for number in _BOTH}
    return [
        {f"tokens{number}": tokenize(*pair, example.caption).to(base.device) for number, pair in pairs.items()}
        | {"sizes": _sizes(base, example)}
        for example in examples
    ]


def _encoded(base: Base, conditions: Sequence[Condition]) -> tuple[Tensor, Tensor]:
    """`context` and `pooled` of all conditions, made of their tokens by the text encoders that are trained."""
    states = []
    for number in _BOTH:
        tokens = torch.cat([condition[f"tokens{number}"] for condition in conditions])
        output = base.text_encoders[f"text_encoder{number}"](tokens, output_hidden_states=True)
        states.append(output.hidden_states[-2])
    return torch.cat(states, dim=-1), output.text_embeds


def predict(base: Base, noisy: Tensor, times: Tensor, conditions: Sequence[Condition]) -> Tensor:
    """The UNet's prediction for noisy latents, [B, C, h, w]."""
    sizes = torch.cat([condition["sizes"] for condition in conditions])
    if "tokens" in conditions[0]:
        context, pooled = _encoded(base, conditions)
    else:
        context, pooled = (torch.cat([condition[name] for condition in conditions]) for name in ("context", "pooled"))
    added = {"text_embeds": pooled, "time_ids": sizes}
    predicted: Tensor = base.denoiser(noisy.to(base.dtype), times, context, added_cond_kwargs=added, return_dict=False)[
        0
    ]
    return predicted


def stand_in(unet: Any, tokens: int) -> tuple[diffusion.DiscreteSchedule, Condition]:
    """A schedule and a condition for counting memory."""
    schedule, condition = sd15.stand_in(unet, tokens)
    pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
    return schedule, condition | {"pooled": torch.zeros(1, pooled, dtype=unet.dtype), "sizes": torch.zeros(1, 6)}


def tiny(prediction: str) -> Any:
    """A tiny pipeline with random weights, see `FamilyCode.tiny`."""
    tokenizer = clip_tokenizer()
    unet = lib.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32 + 48,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 48,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return lib.StableDiffusionXLPipeline(
        vae=autoencoder(4, 0.13025),
        text_encoder=CLIPTextModel(clip_config(32, tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(48, tokenizer)),
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=noise_scheduler(prediction),
        add_watermarker=False,
    )


def family(record: Family) -> FamilyCode:
    """The code of the family."""
    return replace(
        sd15.family(record), load=partial(load, record), stand_in=stand_in, tiny=tiny,
        encode_captions=encode_captions, tokenize_captions=tokenize_captions, reads_whole=reads_whole, predict=predict,
    )  # fmt: skip
