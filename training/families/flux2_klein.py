"""FLUX.2 [klein] base, 4B and 9B: a flow-matching transformer over patches of 32-channel latents, conditioned by Qwen3.

As in diffusers' pipeline of the model: latents are the mode of the VAE's distribution, in patches of 2 x 2 (32 channels
become 128), normalised by the statistics of the VAE's batch norm. The caption is three hidden states of Qwen3, side by
side, padded to 512 tokens that the network sees all. The network takes s in 0..1 as its time and predicts n - x.

Times: logit-normal (https://arxiv.org/abs/2403.03206, section 3.1), shifted by e^mu, mu linear in the number of tokens,
as the makers' own code and musubi-tuner (flux2_shift) do. A LoRA of a base model is used on the few-step models too.
"""

import json
from collections.abc import Sequence
from functools import partial
from math import exp
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from core.errors import BaseModelUnavailable
from training.families import flow
from training.families.encoders import Encoders
from training.families.family import Base, Condition, Draw, FamilyCode, Where
from training.families.latents import pixels, tiled, vae_decode
from training.families.record import Family
from training.families.weights.parts import config_of, load_part
from training.families.weights.quantised import place
from training.ports import Example
from training.tiny.parts import flow_scheduler, lessen, lib, normalise, qwen_tokenizer

MAX_TOKENS = 512  # as in diffusers' pipeline
STATES = (9, 18, 27)  # the hidden states that are the caption; 0 are the embeddings
_CERTAIN = -30.0  # the log-variance of latents without a distribution
_LINE = (256, 0.5, 4096, 1.15)  # mu of the shift while training: tokens and mu at both ends
_FAMILIES_BY_HEADS = {24: "flux2-klein-4b", 32: "flux2-klein-9b", 48: "FLUX.2 [dev]"}


def load(record: Family, where: Where) -> Base:
    """The frozen base model in `where.folder`. Raises BaseModelUnavailable."""
    config = config_of(where.folder, "transformer")
    found = _FAMILIES_BY_HEADS.get(int(config.get("num_attention_heads", 48)), record.name)
    if found != record.name or config.get("guidance_embeds", True):
        raise BaseModelUnavailable(f"the base model in {where.folder} is of {found}, not of {record.name}")
    is_few_step = _is_few_step(where)
    warnings = []
    if is_few_step:
        warnings.append(
            f"{where.folder.name} is a few-step model, which training damages: train on the base model of "
            f"{record.name}, and draw with the few-step one"
        )
    return Base(
        partial(_load_transformer, record, where),
        Encoders(
            {
                "tokenizer": partial(load_part, Qwen2Tokenizer, where.folder, "tokenizer"),
                "text_encoder": partial(_load_encoder, where),
                "vae": partial(load_part, AutoencoderKLFlux2, where.folder, "vae", where.vae_dtype),
            },
            where.device,
        ),
        None, where.device, where.dtype, "flow", warnings,
        drawing=(4, 1.0) if is_few_step else record.previews, quantisation=where.quantisation,
    )  # fmt: skip


def _is_few_step(where: Where) -> bool:
    """Whether the folder says that the model is distilled."""
    try:
        index = json.loads((where.folder / "model_index.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(index, dict) and bool(index.get("is_distilled"))


def _load_transformer(record: Family, where: Where) -> Any:
    transformer = load_part(Flux2Transformer2DModel, where.folder, "transformer", where.dtype)
    return place(transformer, record.quantised, where.quantisation, where.device)


def _load_encoder(where: Where) -> Any:
    """Qwen3 without the layers after the last hidden state that is read, and without its head."""
    encoder = load_part(Qwen3Model, where.folder, "text_encoder", where.dtype)
    encoder.layers = encoder.layers[: STATES[-1] + 1]  # one more: the last state of a model is normalised
    encoder.config.num_hidden_layers = len(encoder.layers)
    return encoder


def _as_message(tokenizer: Any, caption: str) -> str:
    return str(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": caption}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    )


def reads_whole(base: Base, caption: str) -> bool:
    """Whether the text encoder reads a caption to its end."""
    tokenizer = base.encoders["tokenizer"]
    return bool(len(tokenizer(_as_message(tokenizer, caption), verbose=False).input_ids) <= MAX_TOKENS)


def encode_captions(base: Base, examples: Sequence[Example]) -> list[Condition]:
    """The condition of each picture: `context` [1, 512, 3 x width], computed as in diffusers' pipeline."""
    tokenizer, encoder = base.encoders["tokenizer"], base.encoders["text_encoder"]
    made: dict[str, Tensor] = {}
    with base.encoders.awake("text_encoder"), torch.no_grad():
        for caption in dict.fromkeys(example.caption for example in examples):
            tokens = tokenizer(
                _as_message(tokenizer, caption), padding="max_length", max_length=MAX_TOKENS, truncation=True,
                return_tensors="pt",
            ).to(base.device)  # fmt: skip
            output = encoder(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True,
                use_cache=False,
            )  # fmt: skip
            states = [output.hidden_states[number] for number in STATES]
            made[caption] = torch.cat(states, dim=-1).to(base.dtype)
    return [{"context": made[example.caption]} for example in examples]


def encode_pictures(base: Base, examples: Sequence[Example]) -> list[Tensor]:
    """The normalised patches of each picture's latents as moments without variance, [256, h, w] float32 on the CPU."""
    vae = base.encoders["vae"]
    values = torch.cat([pixels(example) for example in examples])
    with torch.no_grad(), tiled(vae, values.shape[-2:]):
        latents = patches(vae.encode(values.to(base.device, vae.dtype)).latent_dist.mode())
        mean, deviation = _statistics(vae, latents)
        latents = ((latents - mean) / deviation).float().cpu()
    return list(torch.cat([latents, torch.full_like(latents, _CERTAIN)], dim=1))


def decode(base: Base, latents: Tensor) -> Tensor:
    """Pictures [B, 3, height, width] from normalised patches [B, 128, h, w]."""
    vae = base.encoders["vae"]
    mean, deviation = _statistics(vae, latents)
    return vae_decode(base, unpatched(latents * deviation + mean))


def _statistics(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of patches, from the VAE's batch norm, [1, 128, 1, 1] each."""
    mean = vae.bn.running_mean.view(1, -1, 1, 1).to(latents)
    variance = vae.bn.running_var.view(1, -1, 1, 1).to(latents)
    return mean, (variance + vae.config.batch_norm_eps).sqrt()


def patches(latents: Tensor) -> Tensor:
    """Latents [B, C, 2h, 2w] as patches [B, 4C, h, w]: the channel, then its row and column."""
    count, channels, height, width = latents.shape
    split = latents.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return split.reshape(count, 4 * channels, height // 2, width // 2)


def unpatched(latents: Tensor) -> Tensor:
    """The reverse of `patches`."""
    count, channels, height, width = latents.shape
    split = latents.view(count, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return split.reshape(count, channels // 4, 2 * height, 2 * width)


def draw(base: Base, moments: Tensor, generator: torch.Generator) -> Draw:
    """Draw the latents of moments [B, 256, h, w], normal noise, and s in 0..1: logit-normal, then shifted."""
    latents = moments.chunk(2, dim=1)[0]
    noise = torch.randn(latents.shape, generator=generator)
    tokens = latents.shape[-2] * latents.shape[-1]
    times = flow.logit_normal(len(latents), generator, exp(flow.on_line(tokens, _LINE)))
    return Draw.plain(latents, noise, flow.in_bfloat16(times))


def predict(base: Base, mixed: Tensor, times: Tensor, conditions: Sequence[Condition]) -> Tensor:
    """The prediction of n - x, [B, 128, h, w]."""
    count, _, height, width = mixed.shape
    context = torch.cat([condition["context"] for condition in conditions])
    predicted: Tensor = base.denoiser(
        hidden_states=mixed.to(base.dtype).flatten(2).transpose(1, 2),
        encoder_hidden_states=context,
        timestep=times,
        img_ids=_places(height, width, mixed.device),
        txt_ids=_order(context.shape[1], mixed.device),
        return_dict=False,
    )[0]
    return predicted.transpose(1, 2).reshape(count, -1, height, width)


def _places(height: int, width: int, device: torch.device) -> Tensor:
    """The position of each patch, [h x w, 4]: (0, row, column, 0)."""
    rows = torch.arange(height, device=device).repeat_interleave(width)
    columns = torch.arange(width, device=device).repeat(height)
    nothing = torch.zeros_like(rows)
    return torch.stack([nothing, rows, columns, nothing], dim=1)


def _order(count: int, device: torch.device) -> Tensor:
    """The position of each token of a caption, [count, 4]: (0, 0, 0, number)."""
    numbers = torch.arange(count, device=device)
    nothing = torch.zeros_like(numbers)
    return torch.stack([nothing, nothing, nothing, numbers], dim=1)


def levels(base: Base, count: int, size: tuple[int, int]) -> Tensor:
    """`count` times from 1 down, evenly spaced and then shifted as in diffusers' pipeline (`compute_empirical_mu`)."""
    tokens = size[0] * size[1]
    mu = 0.00016927 * tokens + 0.45666666  # at 200 steps, and for large pictures at any number
    if tokens <= 4300:
        mu_of_10 = 8.73809524e-05 * tokens + 1.89833333
        mu += (mu - mu_of_10) / 190 * (count - 200)
    return flow.shifted(1 - torch.arange(count) / count, exp(mu))


def stand_in(transformer: Any, _tokens: int) -> tuple[None, Condition]:
    """A condition for counting memory. Every caption has 512 tokens."""
    width = transformer.config.joint_attention_dim
    return None, {"context": torch.zeros(1, MAX_TOKENS, width, dtype=transformer.dtype)}


def tiny(_prediction: str) -> Any:
    """A tiny pipeline with random weights, see `FamilyCode.tiny`."""
    tokenizer = qwen_tokenizer(512)
    text_encoder = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=28,  # the condition is the hidden states 9, 18 and 27
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=512,
            tie_word_embeddings=True,
        )
    )
    transformer = lib.Flux2Transformer2DModel(
        num_layers=1, num_single_layers=2, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=48,
        timestep_guidance_channels=32, axes_dims_rope=(8, 8, 8, 8), guidance_embeds=False,
    )  # fmt: skip
    lessen(transformer.proj_out)
    vae = lib.AutoencoderKLFlux2(
        block_out_channels=(16, 16, 32, 32), layers_per_block=1, norm_num_groups=8, sample_size=64
    )
    normalise(vae, 32, torch.full((32,), 1.5), torch.full((32,), 0.25))
    vae.bn.running_mean.fill_(0.25)
    vae.bn.running_var.fill_(1.5**2)
    return lib.Flux2KleinPipeline(
        scheduler=flow_scheduler(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )  # fmt: skip


def family(record: Family) -> FamilyCode:
    """The code of both sizes."""
    return FamilyCode(
        record,
        load=partial(load, record),
        denoiser=Flux2Transformer2DModel,
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
