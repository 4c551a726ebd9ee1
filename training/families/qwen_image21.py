"""Qwen-Image 2.1: one stream of caption and picture over 64-channel latents, conditioned by Qwen3-VL.

As in diffusers' pipeline of the model: the VAE takes and gives pictures with an alpha channel, and 16 x 16 pixels are
one place of its latents, which the network reads one by one. The caption is put into a fixed text; the condition is the
output of the last layer of Qwen3-VL before its norm, without the system's message. Tokens of the caption attend to what
is before them, places of the picture to everything. The network takes s in 0..1 as its time and predicts n - x.

Times: logit-normal (https://arxiv.org/abs/2403.03206, section 3.1), shifted by e^mu, mu linear in the number of places
by the base model's scheduler, as for Qwen-Image.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from math import exp, prod
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage21
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from training.families import flow
from training.families.encoders import Encoders
from training.families.family import Base, Condition, Draw, FamilyCode, Where
from training.families.frames import decode, encode_pictures
from training.families.latents import sample
from training.families.qwen_image import (
    PUBLISHED,
    QwenSchedule,
    encode_texts,
    schedule_of,
    spaced,
    tiny_scheduler,
)
from training.families.record import Family
from training.families.weights.parts import load_part
from training.families.weights.quantised import place
from training.ports import Example
from training.tiny.parts import lessen, lib, normalise, qwen_tokenizer

MAX_TOKENS = 1024  # of a caption. diffusers' pipeline has no limit, but the network's table of positions has an end
SYSTEM = "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n"
TEXT = SYSTEM + "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
_GROUP = 4  # places of the latents for each entry of the network's mask


class Transformer(lib.QwenImage21Transformer2DModel):  # type: ignore[misc]
    """diffusers' network. For a caption and one picture, its step reads nothing back from the device."""

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, timestep: Tensor, img_shapes: Any, img_mask: Tensor,
        encoder_hidden_states_mask: Tensor | None = None, return_dict: bool = True, **more: Any,
    ) -> Any:  # fmt: skip
        """As diffusers' own, which finds out on the device where captions end and pictures begin."""
        is_drawing = any(value is not None for value in more.values())
        if return_dict or is_drawing or encoder_hidden_states_mask is not None or len(img_shapes[0]) > 1:
            return super().forward(
                hidden_states, encoder_hidden_states, timestep, img_shapes, img_mask, encoder_hidden_states_mask,
                return_dict=return_dict, **more,
            )  # fmt: skip
        length = encoder_hidden_states.shape[1]
        tokens = torch.cat([self.txt_in(encoder_hidden_states), self.img_in(hidden_states)], dim=1)
        in_picture = torch.arange(tokens.shape[1], device=tokens.device) >= length
        # The caption has time 0.
        embedded = self.time_text_embed(torch.cat([timestep.to(tokens.dtype), tokens.new_zeros(1)]), tokens)
        modulation = self.modulation(embedded)
        rotation = self._rotation(length, img_shapes[0][0][1:], tokens.device)
        given = (modulation, rotation, None, in_picture, None, None, None, [(0, length, True)], None)
        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens, *given)
            else:
                tokens = block(tokens, *given)
        return (self.proj_out(self.norm_out(tokens, embedded, in_picture)),)

    def _rotation(self, length: int, size: tuple[int, int], device: torch.device) -> Tensor:
        """The rotation of each token: captions go along all three axes, pictures lie around zero at their end."""
        table = self.pos_embed
        table.freqs = [freq.to(device) for freq in table.freqs]
        height, width = size
        text = torch.arange(length, device=device)
        rows = torch.arange(height // 2 - height, height // 2, device=device).repeat_interleave(width)
        columns = torch.arange(width // 2 - width, width // 2, device=device).repeat(height)
        places = torch.full_like(rows, length), rows, columns
        return torch.cat(
            [freqs[torch.cat([text, each])] for freqs, each in zip(table.freqs, places, strict=True)], dim=-1
        )


class TextProcessor(Qwen3VLProcessor):
    """What diffusers' pipeline calls of the processor to draw from text. The whole one needs torchvision."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: list[str], **given: Any) -> Any:
        return self.tokenizer(text, **given)

    def apply_chat_template(self, _messages: Any, **_given: Any) -> Any:  # type: ignore[override]
        """The tokens of the system's message, which the pipeline counts."""
        return self.tokenizer([SYSTEM]).input_ids

    def save_pretrained(self, folder: Any, **given: Any) -> Any:  # type: ignore[override]
        return self.tokenizer.save_pretrained(folder, **given)


# diffusers writes the class of each component into the index of a folder.
TextProcessor.__name__, TextProcessor.__module__ = Qwen3VLProcessor.__name__, Qwen3VLProcessor.__module__


def components(folder: Path) -> Mapping[str, Any]:
    """See `FamilyCode.components`."""
    return {"processor": TextProcessor(_tokenizer(folder))}


def _tokenizer(folder: Path) -> Any:
    return load_part(Qwen2Tokenizer, folder, "processor")


def load(record: Family, where: Where) -> Base:
    """The frozen base model in `where.folder`. Raises BaseModelUnavailable."""
    sigmas = _sigmas(where.folder)
    is_few_step = where.distilled or sigmas is not None
    warnings = []
    if is_few_step:
        warnings.append(
            f"{where.folder.name} is a few-step model, which training damages: train on Qwen-Image 2.1 itself, and "
            "draw with the few-step one"
        )
    return Base(
        partial(_load_transformer, record, where),
        Encoders(
            {
                "processor": partial(_tokenizer, where.folder),
                "text_encoder": partial(
                    load_part, Qwen3VLForConditionalGeneration, where.folder, "text_encoder", where.dtype
                ),
                "vae": partial(load_part, AutoencoderKLQwenImage21, where.folder, "vae", where.vae_dtype),
            },
            where.device,
        ),
        schedule_of(where, sigmas), where.device, where.dtype, "flow", warnings,
        drawing=(len(sigmas or range(8)), 1.0) if is_few_step else record.previews, quantisation=where.quantisation,
    )  # fmt: skip


def _sigmas(folder: Path) -> tuple[float, ...] | None:
    """The times before the shift with which a few-step model is drawn with, from its folder."""
    try:
        sigmas = json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("sample_sigmas")
        return tuple(float(sigma) for sigma in sigmas) if sigmas else None
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def _load_transformer(record: Family, where: Where) -> Any:
    transformer = load_part(Transformer, where.folder, "transformer", where.dtype)
    return place(transformer, record.quantised, where.quantisation, where.device)


def reads_whole(base: Base, caption: str) -> bool:
    """Whether a caption is trained to its end."""
    tokenizer = base.encoders["processor"]
    tokens, before = (tokenizer(text, verbose=False).input_ids for text in (TEXT.format(caption), SYSTEM))
    return bool(len(tokens) <= len(before) + MAX_TOKENS)


def encode_captions(base: Base, examples: Sequence[Example]) -> list[Condition]:
    """The condition of each picture: `context` [tokens of the text after the system's message, width]."""
    tokenizer, encoder = base.encoders["processor"], base.encoders["text_encoder"]
    before = len(tokenizer(SYSTEM).input_ids)
    # diffusers' pipeline does the same: the network was trained on the states before the norm.
    hook = encoder.model.language_model.norm.register_forward_hook(lambda _norm, given, _output: given[0])
    try:
        return encode_texts(base, tokenizer, examples, lambda caption: TEXT.format(caption or " "), before, MAX_TOKENS)
    finally:
        hook.remove()


def draw(base: Base, moments: Tensor, generator: torch.Generator) -> Draw:
    """Draw latents from moments [B, 128, h, w], normal noise, and s in 0..1: logit-normal, then shifted.

    bfloat16 holds the times, so that the network, which rounds them, is told the noise that it sees.
    """
    latents = sample(moments, generator)
    noise = torch.randn(latents.shape, generator=generator)
    shift = exp(flow.on_line(prod(latents.shape[-2:]), base.schedule.line))
    return Draw.plain(latents, noise, flow.logit_normal(len(latents), generator, shift).bfloat16().float())


def predict(base: Base, mixed: Tensor, times: Tensor, conditions: Sequence[Condition]) -> Tensor:
    """The prediction of n - x, [B, 64, h, w].

    Padding would move the picture's position, so captions of different lengths go through the network one after the
    other. That is possible because a step of this family has one job only (`shares_steps`).
    """
    lengths = [len(condition["context"]) for condition in conditions]
    made: dict[int, Tensor] = {}
    for length in dict.fromkeys(lengths):
        those = [number for number, each in enumerate(lengths) if each == length]
        some = slice(None) if len(those) == len(lengths) else those
        contexts = torch.stack([conditions[number]["context"] for number in those])
        made |= dict(zip(those, _predict(base, mixed[some], times[some], contexts), strict=True))
    return torch.stack([made[number] for number in range(len(lengths))])


def _predict(base: Base, mixed: Tensor, times: Tensor, contexts: Tensor) -> Tensor:
    samples, length, (height, width) = len(mixed), contexts.shape[1], mixed.shape[-2:]
    slots = torch.arange(length + height * width // _GROUP, device=mixed.device) >= length
    predicted: Tensor = base.denoiser(
        hidden_states=mixed.to(base.dtype).flatten(2).transpose(1, 2),
        encoder_hidden_states=contexts,
        timestep=times,
        img_shapes=[[(1, height, width)]] * samples,
        img_mask=slots.expand(samples, -1),
        return_dict=False,
    )[0]
    return predicted[:, length:].transpose(1, 2).reshape(samples, -1, height, width)


def levels(base: Base, count: int, size: tuple[int, int]) -> Tensor:
    """`count` times from 1 down, as in diffusers' pipeline."""
    return spaced(base.schedule, count, prod(size))


def stand_in(transformer: Any, tokens: int) -> tuple[QwenSchedule, Condition]:
    """A schedule and a condition of `tokens` tokens for counting memory."""
    context = torch.zeros(tokens, transformer.config.context_in_dim, dtype=transformer.dtype)
    return PUBLISHED, {"context": context}


def tiny(_prediction: str) -> Any:
    """A tiny pipeline with random weights, see `FamilyCode.tiny`."""
    tokenizer = qwen_tokenizer(MAX_TOKENS + 64)
    text_encoder = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            text_config={
                "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 2048,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            },
            vision_config={
                "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
                "deepstack_visual_indexes": [0],
            },
        )
    )  # fmt: skip
    transformer = lib.QwenImage21Transformer2DModel(
        num_layers=2, attention_head_dim=32, num_attention_heads=2, context_in_dim=32, axes_dims_rope=(8, 12, 12)
    )
    lessen(transformer.proj_out)
    vae = lib.AutoencoderKLQwenImage21(base_dim=8, decoder_base_dim=8, dim_mult=[1, 2, 2, 2, 2], num_res_blocks=1)
    normalise(vae, 64, torch.tensor(vae.config.latents_std), torch.tensor(vae.config.latents_mean))
    return lib.QwenImage21Pipeline(
        scheduler=tiny_scheduler(),
        vae=vae,
        text_encoder=text_encoder,
        processor=TextProcessor(tokenizer),
        transformer=transformer,
    )  # fmt: skip


def family(record: Family) -> FamilyCode:
    """The code of the family."""
    return FamilyCode(
        record,
        load=partial(load, record),
        denoiser=Transformer,
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
        components=components,
    )
