"""Qwen-Image: a two-stream flow-matching transformer over 16-channel latents, conditioned by Qwen2.5-VL.

As in diffusers' pipeline of the model: the VAE is that of a video model, for one frame; latents are normalised by the
means and deviations in its configuration, and the network reads them in patches of 2 x 2. The caption is put into a
fixed text, and the last hidden states of Qwen2.5-VL are the condition, without those of the text before the caption.
The network takes s in 0..1 as its time and predicts n - x.

Times: logit-normal (https://arxiv.org/abs/2403.03206, section 3.1), shifted by e^mu, mu linear in the number of patches
by the base model's scheduler, as musubi-tuner (qwen_shift) does.
"""

from collections.abc import Callable, Sequence
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
from training.families.frames import decode, encode_pictures
from training.families.latents import sample
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

    line: tuple[int, float, int, float]  # tokens and mu at both ends
    terminal: float | None
    sigmas: tuple[float, ...] | None = None  # the times of a drawing before the shift, if they are not evenly spaced


# Of the published models, for counting memory and for tiny ones.
PUBLISHED = QwenSchedule((256, 0.5, 8192, 0.9), 0.02)


def tiny_scheduler() -> Any:
    """A scheduler with the numbers of the published models."""
    (least, base_shift, most, max_shift), terminal = PUBLISHED.line, PUBLISHED.terminal
    return flow_scheduler(
        use_dynamic_shifting=True, base_shift=base_shift, max_shift=max_shift, base_image_seq_len=least,
        max_image_seq_len=most, shift_terminal=terminal,
    )  # fmt: skip


def schedule_of(where: Where, sigmas: tuple[float, ...] | None = None) -> QwenSchedule:
    """The schedule of a base model, from its scheduler's configuration. Raises BaseModelUnavailable."""
    config = load_part(FlowMatchEulerDiscreteScheduler, where.folder, "scheduler").config
    line = (config.base_image_seq_len, config.base_shift, config.max_image_seq_len, config.max_shift)
    return QwenSchedule(line, config.shift_terminal or None, sigmas)


def load(record: Family, where: Where) -> Base:
    """The frozen base model in `where.folder`. Raises BaseModelUnavailable."""
    config = config_of(where.folder, "transformer")
    if config.get("zero_cond_t") or config.get("use_additional_t_cond") or config.get("guidance_embeds"):
        raise BaseModelUnavailable(
            f"the base model in {where.folder} is a Qwen-Image for editing or layers: only those that draw from text "
            "can be trained"
        )
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
        schedule_of(where), where.device, where.dtype, "flow",
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
    return encode_texts(base, base.encoders["tokenizer"], examples, TEXT.format, BEFORE, MAX_TOKENS)


def encode_texts(
    base: Base, tokenizer: Any, examples: Sequence[Example], text: Callable[[str], str], before: int, max_tokens: int
) -> list[Condition]:
    """`context` of each picture: the last states of its caption in a fixed text, without the tokens `before` it."""
    encoder = base.encoders["text_encoder"]
    made: dict[str, Tensor] = {}
    with base.encoders.awake("text_encoder"), torch.no_grad():
        for caption in dict.fromkeys(example.caption for example in examples):
            tokens = tokenizer(text(caption), max_length=before + max_tokens, truncation=True, return_tensors="pt").to(
                base.device
            )
            output = encoder.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, use_cache=False)
            made[caption] = output.last_hidden_state[0, before:].to(base.dtype)
    return [{"context": made[example.caption]} for example in examples]


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
    """`count` times from 1 down, as in diffusers' pipeline."""
    return spaced(base.schedule, count, patches.count(size))


def spaced(schedule: QwenSchedule, count: int, tokens: int) -> Tensor:
    """`count` times from 1 down for a picture of so many tokens: evenly spaced, shifted, and stretched to the last."""
    s = 1 - torch.arange(count) / count
    if schedule.sigmas is not None and len(schedule.sigmas) == count:
        s = torch.tensor(schedule.sigmas)
    s = flow.shifted(s, exp(flow.on_line(tokens, schedule.line)))
    if schedule.terminal is None or count == 1:
        return s
    return 1 - (1 - s) * (1 - schedule.terminal) / (1 - s[-1])


def stand_in(transformer: Any, tokens: int) -> tuple[QwenSchedule, Condition]:
    """A schedule and a condition of `tokens` tokens for counting memory."""
    width = transformer.config.joint_attention_dim
    context = torch.zeros(tokens, width, dtype=transformer.dtype)
    return PUBLISHED, {"context": context}


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
        scheduler=tiny_scheduler(),
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
