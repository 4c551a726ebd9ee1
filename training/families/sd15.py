"""Stable Diffusion 1.x: one UNet, one CLIP text encoder; epsilon or v-prediction."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from core.errors import BaseModelUnavailable
from training.families import diffusion
from training.families.encoders import Encoders
from training.families.family import Base, Condition, FamilyCode, Where
from training.families.latents import encode_pictures
from training.families.record import Family
from training.families.weights.parts import class_of, config_of, load_part
from training.families.weights.quantised import place
from training.ports import Example
from training.tiny.parts import autoencoder, clip_config, clip_tokenizer, lib, noise_scheduler

CLIP_TOKENS = 77


def load(record: Family, where: Where) -> Base:
    """The frozen base model in `where.folder`. Loads only its schedule. Raises BaseModelUnavailable."""
    config = config_of(where.folder, "unet")
    # Stable Diffusion 1 has convolutions there; Stable Diffusion 2 has linears under the same names.
    if config.get("use_linear_projection") and config.get("addition_embed_type") is None:
        raise BaseModelUnavailable(f"the base model in {where.folder} is a Stable Diffusion 2, which is not supported")
    channels = config_of(where.folder, "vae").get("latent_channels", 4)  # an inpainting UNet has more inputs
    if config.get("addition_embed_type") is not None or config.get("in_channels") != channels:
        raise BaseModelUnavailable(
            f"the UNet in {where.folder} is not one of sd15 (in_channels {config.get('in_channels')}, "
            f"addition_embed_type {config.get('addition_embed_type')}): it may be of another family, or for inpainting"
        )
    schedule = diffusion.load_schedule(where)
    return Base(
        lambda: place(
            load_part(UNet2DConditionModel, where.folder, "unet", where.dtype), record.quantised, where.quantisation,
            where.device,
        ),
        Encoders(
            {
                "tokenizer": partial(load_part, CLIPTokenizer, where.folder, "tokenizer"),
                "text_encoder": partial(load_part, CLIPTextModel, where.folder, "text_encoder", torch.float32),
                "vae": partial(load_part, AutoencoderKL, where.folder, "vae", where.vae_dtype),
            },
            where.device,
        ),
        schedule, where.device, where.dtype, schedule.prediction, drawing=record.previews,
        quantisation=where.quantisation, load_text_encoders=text_encoders(record, where),
    )  # fmt: skip


def text_encoders(record: Family, where: Where) -> Callable[[], dict[str, Any]] | None:
    """Loads the text encoders that are trained, in the precision of the base; None if they are not."""
    if not where.trains_text_encoders:
        return None
    kinds = {part: class_of(name) for part, name in record.classes.items() if part.startswith("text_encoder")}
    return lambda: {
        part: load_part(kind, where.folder, part, where.dtype).to(where.device) for part, kind in kinds.items()
    }


def require_pair(tokenizer: Any, encoder: Any) -> None:
    """Raise BaseModelUnavailable for a CLIP tokenizer that does not belong to the text encoder: PyTorch would crash."""
    longest, words = encoder.config.max_position_embeddings, encoder.config.vocab_size
    if tokenizer.model_max_length != longest or len(tokenizer) > words:
        read, known = tokenizer.model_max_length, len(tokenizer)
        raise BaseModelUnavailable(
            f"the tokenizer gives {read} tokens of a vocabulary of {known}, but the text encoder reads {longest} "
            f"tokens of {words}: they are of different models. Take both from one base model"
        )


def tokenize(tokenizer: Any, encoder: Any, caption: str) -> Tensor:
    """The token ids of a caption, [1, length of the model], truncated or padded. Raises BaseModelUnavailable."""
    require_pair(tokenizer, encoder)
    ids: Tensor = tokenizer(
        caption, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def reads_whole(base: Base, caption: str) -> bool:
    """Whether the text encoder reads a caption to its end: it reads 77 tokens, of which two mark begin and end."""
    return has_room(base.encoders["tokenizer"], caption)


def has_room(tokenizer: Any, caption: str) -> bool:
    """Whether a caption has no more tokens than its text encoder reads."""
    return bool(len(tokenizer(caption, verbose=False).input_ids) <= tokenizer.model_max_length)


def encode_captions(base: Base, examples: Sequence[Example]) -> list[Condition]:
    """The condition of each picture: `context` [1, tokens, width], the last hidden states of the text encoder."""
    tokenizer, encoder = base.encoders["tokenizer"], base.encoders["text_encoder"]
    made: dict[str, Tensor] = {}
    with base.encoders.awake("text_encoder"), torch.no_grad():
        for caption in dict.fromkeys(example.caption for example in examples):
            made[caption] = encoder(tokenize(tokenizer, encoder, caption).to(base.device)).last_hidden_state
    return [{"context": made[example.caption].to(base.dtype)} for example in examples]


def tokenize_captions(base: Base, examples: Sequence[Example]) -> list[Condition]:
    """The condition of each picture: `tokens` [1, 77]. The encoder is only asked for its configuration."""
    tokenizer, encoder = base.encoders["tokenizer"], base.encoders["text_encoder"]
    return [{"tokens": tokenize(tokenizer, encoder, example.caption).to(base.device)} for example in examples]


def predict(base: Base, noisy: Tensor, times: Tensor, conditions: Sequence[Condition]) -> Tensor:
    """The UNet's prediction for noisy latents, [B, C, h, w]."""
    if "tokens" in conditions[0]:
        tokens = torch.cat([condition["tokens"] for condition in conditions])
        context = base.text_encoders["text_encoder"](tokens).last_hidden_state
    else:
        context = torch.cat([condition["context"] for condition in conditions])
    predicted: Tensor = base.denoiser(noisy.to(base.dtype), times, context, return_dict=False)[0]
    return predicted


def stand_in(unet: Any, tokens: int) -> tuple[diffusion.DiscreteSchedule, Condition]:
    """A schedule and a condition for counting memory. Every caption has 77 tokens, whatever `tokens` is."""
    schedule = diffusion.DiscreteSchedule(torch.full((1000,), 0.5), 1.0, "epsilon")
    return schedule, {"context": torch.zeros(1, CLIP_TOKENS, unet.config.cross_attention_dim, dtype=unet.dtype)}


def tiny(prediction: str) -> Any:
    """A tiny pipeline with random weights, see `FamilyCode.tiny`."""
    tokenizer = clip_tokenizer()
    unet = lib.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return lib.StableDiffusionPipeline(
        vae=autoencoder(4, 0.18215),
        text_encoder=CLIPTextModel(clip_config(32, tokenizer)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=noise_scheduler(prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def family(record: Family) -> FamilyCode:
    """The code of the family."""
    return FamilyCode(
        record,
        load=partial(load, record),
        denoiser=UNet2DConditionModel,
        stand_in=stand_in,
        tiny=tiny,
        encode_pictures=encode_pictures,
        encode_captions=encode_captions,
        tokenize_captions=tokenize_captions,
        reads_whole=reads_whole,
        draw=diffusion.draw,
        mix=diffusion.mix,
        predict=predict,
        target=diffusion.target,
        weigh=diffusion.weigh,
        levels=diffusion.levels,
        denoise=diffusion.denoise,
        decode=diffusion.decode,
    )
