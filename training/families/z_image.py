"""Z-Image: a single-stream flow-matching transformer over 16-channel latents, conditioned by a Qwen3 language model.

Flow matching as in `flow`. Diffusers' model takes 1 - s as its time and predicts x - n: see the signs in `predict`. s
is drawn uniformly and shifted towards noise: s = f u / (1 + (f - 1) u), f from the scheduler, 3.0 by default.

Z-Image-Turbo draws in 8 steps because it was distilled: see `training_adapter`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from training.families import flow
from training.families.encoders import Encoders
from training.families.family import Base, Condition, Draw, FamilyCode, Where
from training.families.latents import decode_scaled, encode_pictures, sample_scaled
from training.families.record import Family
from training.families.training_adapter import as_used, merge_adapter
from training.families.weights.parts import load_part, vae_number
from training.families.weights.quantised import place
from training.ports import Example
from training.tiny.parts import autoencoder, flow_scheduler, lessen, lib, qwen_tokenizer

MAX_TOKENS = 512  # as in diffusers' pipeline


@dataclass(frozen=True)
class FlowSchedule:
    """The shift towards noise, and how latents are scaled: (z - offset) * scaling."""

    shift: float
    scaling: float
    offset: float


def load(record: Family, where: Where) -> Base:
    """The frozen base model in `where.folder`, with the training adapter merged. Raises BaseModelUnavailable."""
    shift = float(load_part(FlowMatchEulerDiscreteScheduler, where.folder, "scheduler").config.shift)
    scaling, offset = (vae_number(where.folder, name) for name in ("scaling_factor", "shift_factor"))
    warnings = []
    if where.distilled and where.training_adapter is None:
        warnings.append(
            "Z-Image-Turbo is trained without its training adapter: the LoRA will damage drawing in 8 steps. Set the "
            "file of the de-distilling training adapter, or train on the undistilled Z-Image base"
        )
    # As its makers recommend: no guidance with the few-step model.
    drawing = (9, 1.0) if where.distilled else record.previews
    return Base(
        partial(_load_transformer, record, where),
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


def _load_transformer(record: Family, where: Where) -> Any:
    transformer = load_part(ZImageTransformer2DModel, where.folder, "transformer", where.dtype)
    if where.training_adapter is not None:
        merge_adapter(transformer, where.training_adapter)
    return place(transformer, record.quantised, where.quantisation, where.device)


def _as_message(tokenizer: Any, caption: str) -> str:
    """A caption as the text encoder, a language model, gets it."""
    message: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": caption}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    return message


def reads_whole(base: Base, caption: str) -> bool:
    """Whether the text encoder reads a caption to its end."""
    tokenizer = base.encoders["tokenizer"]
    return bool(len(tokenizer(_as_message(tokenizer, caption), verbose=False).input_ids) <= MAX_TOKENS)


def encode_captions(base: Base, examples: Sequence[Example]) -> list[Condition]:
    """The condition of each picture: `context` [tokens of the caption, width], computed as in diffusers' pipeline."""
    tokenizer, encoder = base.encoders["tokenizer"], base.encoders["text_encoder"]
    made: dict[str, Tensor] = {}
    with base.encoders.awake("text_encoder"), torch.no_grad():
        for caption in dict.fromkeys(example.caption for example in examples):
            tokens = tokenizer(
                [_as_message(tokenizer, caption)],
                padding="max_length",
                max_length=MAX_TOKENS,
                truncation=True,
                return_tensors="pt",
            ).to(base.device)
            mask = tokens.attention_mask.bool()
            output = encoder(input_ids=tokens.input_ids, attention_mask=mask, output_hidden_states=True)
            made[caption] = output.hidden_states[-2][0][mask[0]].to(base.dtype)
    return [{"context": made[example.caption]} for example in examples]


def draw(base: Base, moments: Tensor, generator: torch.Generator) -> Draw:
    """Draw scaled latents from moments [B, 2C, h, w], normal noise, and s in 0..1: uniform, then shifted."""
    schedule: FlowSchedule = base.schedule
    latents = sample_scaled(base, moments, generator)
    noise = torch.randn(latents.shape, generator=generator)
    return Draw.plain(latents, noise, flow.shifted(torch.rand(len(latents), generator=generator), schedule.shift))


def predict(base: Base, mixed: Tensor, times: Tensor, conditions: Sequence[Condition]) -> Tensor:
    """The prediction of n - x, [B, C, h, w]. The transformer predicts x - n."""
    frames = list(mixed.to(base.dtype).unsqueeze(2).unbind(0))
    contexts = [condition["context"] for condition in conditions]
    predicted = base.denoiser(frames, 1 - times, contexts, return_dict=False)[0]
    return -torch.stack(list(predicted)).squeeze(2)


def levels(base: Base, count: int, _size: tuple[int, int]) -> Tensor:
    """`count` times from 1 down, evenly spaced before the shift."""
    return flow.shifted(1 - torch.arange(count) / count, base.schedule.shift)


def stand_in(transformer: Any, tokens: int) -> tuple[FlowSchedule, Condition]:
    """A schedule and a condition of `tokens` tokens for counting memory."""
    width = transformer.config.cap_feat_dim
    return FlowSchedule(3.0, 1.0, 0.0), {"context": torch.zeros(tokens, width, dtype=transformer.dtype)}


def tiny(_prediction: str) -> Any:
    """A tiny pipeline with random weights, see `FamilyCode.tiny`."""
    tokenizer = qwen_tokenizer(512)
    text_encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=512,
        )
    )
    transformer = lib.ZImageTransformer2DModel(
        in_channels=16, dim=64, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=32,
        axes_dims=[8, 12, 12], axes_lens=[1024, 64, 64],
    )  # fmt: skip
    lessen(transformer.all_final_layer)
    return lib.ZImagePipeline(
        scheduler=flow_scheduler(shift=3.0),
        vae=autoencoder(16, 0.3611, 0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )


def family(record: Family) -> FamilyCode:
    """The code of the family."""
    return FamilyCode(
        record,
        load=partial(load, record),
        denoiser=ZImageTransformer2DModel,
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
