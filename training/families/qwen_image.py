"""Qwen-Image: a two-stream flow-matching transformer over 16-channel latents, conditioned by Qwen2.5-VL.

As in diffusers' pipeline of the model: the VAE is that of a video model, for one frame; latents are normalised by the
means and deviations in its configuration, and the network reads them in patches of 2 x 2. The caption is put into a
fixed text, and the last hidden states of Qwen2.5-VL are the condition, without those of the text before the caption.
The network takes s in 0..1 as its time and predicts n - x.

Times: logit-normal (https://arxiv.org/abs/2403.03206, section 3.1), shifted by e^mu, mu linear in the number of patches
by the base model's scheduler, as musubi-tuner (qwen_shift) does.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import exp
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from core.errors import BaseModelUnavailable
from training.families import flow, patches
from training.families.encoders import Encoders
from training.families.family import Base, Condition, Draw, FamilyCode, Where
from training.families.latents import TILE, pixels, sample
from training.families.record import Family
from training.families.weights.parts import config_of, load_part
from training.families.weights.quantised import place
from training.ports import Example
from training.tiny.parts import flow_scheduler, lessen, lib, normalise, qwen_tokenizer

MAX_TOKENS = 1024  # of a caption, as in diffusers' pipeline
TEXT = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
BEFORE = 34  # the tokens of that text before the caption


@dataclass(frozen=True)
class QwenSchedule:
    """How times are shifted: mu on a line, and the last time of a drawing."""

    line: tuple[int, float, int, float]  # patches and mu at both ends
    terminal: float | None


def load(record: Family, where: Where) -> Base:
    """The frozen base model in `where.folder`. Raises BaseModelUnavailable."""
    config = config_of(where.folder, "transformer")
    if config.get("zero_cond_t") or config.get("use_additional_t_cond") or config.get("guidance_embeds"):
        raise BaseModelUnavailable(
            f"the base model in {where.folder} is a Qwen-Image for editing or layers: only those that draw from text "
            "can be trained"
        )
    scheduler = load_part(FlowMatchEulerDiscreteScheduler, where.folder, "scheduler").config
    line = (scheduler.base_image_seq_len, scheduler.base_shift, scheduler.max_image_seq_len, scheduler.max_shift)
    return Base(
        partial(_load_transformer, record, where),
        Encoders(
            {
                "tokenizer": partial(load_part, Qwen2Tokenizer, where.folder, "tokenizer"),
                "text_encoder": partial(
                    load_part, Qwen2_5_VLForConditionalGeneration, where.folder, "text_encoder", where.dtype
                ),
                "vae": partial(load_part, AutoencoderKLQwenImage, where.folder, "vae", where.vae_dtype),
            },
            where.device,
        ),
        QwenSchedule(line, scheduler.shift_terminal or None), where.device, where.dtype, "flow",
        drawing=record.previews, quantisation=where.quantisation,
    )  # fmt: skip


def _load_transformer(record: Family, where: Where) -> Any:
    transformer = load_part(QwenImageTransformer2DModel, where.folder, "transformer", where.dtype)
    return place(transformer, record.quantised, where.quantisation, where.device)


def reads_whole(base: Base, caption: str) -> bool:
    """Whether the text encoder reads a caption to its end."""
    tokens = base.encoders["tokenizer"](TEXT.format(caption), verbose=False).input_ids
    return bool(len(tokens) <= MAX_TOKENS + BEFORE)


def encode_captions(base: Base, examples: Sequence[Example]) -> list[Condition]:
    """The condition of each picture: `context` [tokens of the caption, width], computed as in diffusers' pipeline."""
    tokenizer, encoder = base.encoders["tokenizer"], base.encoders["text_encoder"]
    made: dict[str, Tensor] = {}
    with base.encoders.awake("text_encoder"), torch.no_grad():
        for caption in dict.fromkeys(example.caption for example in examples):
            tokens = tokenizer(
                TEXT.format(caption), max_length=MAX_TOKENS + BEFORE, truncation=True, return_tensors="pt"
            ).to(base.device)
            output = encoder.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, use_cache=False)
            made[caption] = output.last_hidden_state[0, BEFORE:].to(base.dtype)
    return [{"context": made[example.caption]} for example in examples]


def encode_pictures(base: Base, examples: Sequence[Example]) -> list[Tensor]:
    """The moments of each picture's normalised latents, [32, h, w] float32 on the CPU. All pictures have one size."""
    vae = base.encoders["vae"]
    values = torch.cat([pixels(example) for example in examples]).unsqueeze(2)  # one frame
    with torch.no_grad(), _tiled(vae, values.shape[-2:]):
        moments = vae.encode(values.to(base.device, vae.dtype)).latent_dist.parameters.squeeze(2).float().cpu()
    mean, log_variance = moments.chunk(2, dim=1)
    center, deviation = _statistics(vae, mean)
    return list(torch.cat([(mean - center) / deviation, log_variance - 2 * deviation.log()], dim=1))


def decode(base: Base, latents: Tensor) -> Tensor:
    """Pictures [B, 3, height, width] from normalised latents [B, 16, h, w]."""
    vae = base.encoders["vae"]
    center, deviation = _statistics(vae, latents)
    with _tiled(vae, [vae.spatial_compression_ratio * side for side in latents.shape[-2:]]):
        made: Tensor = vae.decode((latents * deviation + center).unsqueeze(2).to(vae.dtype), return_dict=False)[0]
    return made.squeeze(2)


def _statistics(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of the VAE's latents, [1, 16, 1, 1] each."""
    found = (torch.tensor(getattr(vae.config, name)) for name in ("latents_mean", "latents_std"))
    center, deviation = (values.view(1, -1, 1, 1).to(latents) for values in found)
    return center, deviation


@contextmanager
def _tiled(vae: Any, size: Sequence[int]) -> Iterator[None]:
    """Inside, the VAE processes pictures with a side above 1024 pixels in overlapping tiles."""
    if max(size) <= TILE:
        yield
        return
    vae.enable_tiling(TILE, TILE, TILE * 7 // 8, TILE * 7 // 8)
    try:
        yield
    finally:
        vae.disable_tiling()


def draw(base: Base, moments: Tensor, generator: torch.Generator) -> Draw:
    """Draw latents from moments [B, 32, h, w], normal noise, and s in 0..1: logit-normal, then shifted."""
    latents = sample(moments, generator)
    noise = torch.randn(latents.shape, generator=generator)
    shift = exp(flow.on_line(patches.count((latents.shape[-2], latents.shape[-1])), base.schedule.line))
    return Draw.plain(latents, noise, flow.logit_normal(len(latents), generator, shift))


def predict(base: Base, mixed: Tensor, times: Tensor, conditions: Sequence[Condition]) -> Tensor:
    """The prediction of n - x, [B, 16, h, w]. Captions of different lengths are padded and masked."""
    height, width = mixed.shape[-2:]
    contexts = [condition["context"] for condition in conditions]
    longest = max(len(context) for context in contexts)
    mask = None
    if any(len(context) < longest for context in contexts):
        places = torch.arange(longest, device=mixed.device)
        mask = torch.stack([places < len(context) for context in contexts])
    predicted: Tensor = base.denoiser(
        hidden_states=patches.split(mixed.to(base.dtype)),
        encoder_hidden_states=torch.stack(
            [functional.pad(context, (0, 0, 0, longest - len(context))) for context in contexts]
        ),
        encoder_hidden_states_mask=mask,
        timestep=times,
        img_shapes=[[(1, height // 2, width // 2)]] * len(mixed),
        return_dict=False,
    )[0]
    return patches.join(predicted, (height, width))


def levels(base: Base, count: int, size: tuple[int, int]) -> Tensor:
    """`count` times from 1 down, evenly spaced, shifted and stretched to the last one as in diffusers' pipeline."""
    schedule: QwenSchedule = base.schedule
    s = flow.shifted(1 - torch.arange(count) / count, exp(flow.on_line(patches.count(size), schedule.line)))
    if schedule.terminal is None or count == 1:
        return s
    return 1 - (1 - s) * (1 - schedule.terminal) / (1 - s[-1])


def stand_in(transformer: Any, tokens: int) -> tuple[QwenSchedule, Condition]:
    """A schedule and a condition of `tokens` tokens for counting memory."""
    width = transformer.config.joint_attention_dim
    context = torch.zeros(tokens, width, dtype=transformer.dtype)
    return QwenSchedule((256, 0.5, 8192, 0.9), 0.02), {"context": context}


def tiny(_prediction: str) -> Any:
    """A tiny pipeline with random weights, see `FamilyCode.tiny`."""
    tokenizer = qwen_tokenizer(1024 + 34)
    text_encoder = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            },
            vision_config={
                "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
                "fullatt_block_indexes": [0],
            },
        )
    )  # fmt: skip
    transformer = lib.QwenImageTransformer2DModel(
        num_layers=2, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(8, 12, 12)
    )
    lessen(transformer.proj_out)
    vae = lib.AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1)
    normalise(vae, 16, torch.tensor(vae.config.latents_std), torch.tensor(vae.config.latents_mean))
    return lib.QwenImagePipeline(
        scheduler=flow_scheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, base_image_seq_len=256, max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )  # fmt: skip


def family(record: Family) -> FamilyCode:
    """The code of the family."""
    return FamilyCode(
        record,
        load=partial(load, record),
        denoiser=QwenImageTransformer2DModel,
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
        decode=decode,
    )
