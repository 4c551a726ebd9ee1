"""Tiny base models in diffusers' layout: real block types, small channels, random weights from a seed.

`python -m training.tiny.base OUT [--family NAME] [--seed 0]`

They cannot draw. Tests train on them: the real code on real modules, but a step takes milliseconds. The same seed gives
the same weights.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from training.tiny.folder import make_once
from training.tiny.parts import (
    autoencoder,
    clip_config,
    clip_tokenizer,
    flow_scheduler,
    lessen,
    lib,
    noise_scheduler,
    normalise,
    qwen_tokenizer,
)
from training.tiny.words import t5_vocabulary

_DONE = "model_index.json"  # the last file that save_pretrained writes


def make(out: Path, family: str = "sd15", seed: int = 0, *, prediction: str = "epsilon") -> Path:
    """Create a tiny base model of `family` at `out`, atomically, unless it exists; returns `out`.

    prediction: epsilon or v_prediction, for sd15 and sdxl.
    """

    def write(folder: Path) -> None:
        _MAKERS[family](prediction).save_pretrained(folder, safe_serialization=True)

    return make_once(Path(out), _DONE, seed, write)


def _sd15(prediction: str) -> Any:
    tokenizer = clip_tokenizer()
    unet = lib.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
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


def _sdxl(prediction: str) -> Any:
    tokenizer = clip_tokenizer()
    unet = lib.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32 + 48,
        attention_head_dim=(2, 2, 4),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 48,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
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


def _z_image(prediction: str) -> Any:
    del prediction  # always flow matching
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


def _flux2_klein(prediction: str) -> Any:
    del prediction  # always flow matching
    tokenizer = qwen_tokenizer(512)
    text_encoder = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=28,  # the condition is the hidden states 9, 18 and 27
            num_attention_heads=2,
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


def _qwen_image(prediction: str) -> Any:
    del prediction  # always flow matching
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


def _flux1(prediction: str) -> Any:
    del prediction  # always flow matching
    tokenizer, tokenizer_2 = clip_tokenizer(), T5Tokenizer(vocab=t5_vocabulary(), extra_ids=0, model_max_length=512)
    text_encoder_2 = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer_2), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
            feed_forward_proj="gated-gelu", dropout_rate=0.0,
        )
    )  # fmt: skip
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


_MAKERS: dict[str, Callable[[str], Any]] = {
    "sd15": _sd15, "sdxl": _sdxl, "z-image": _z_image, "flux2-klein-4b": _flux2_klein, "flux2-klein-9b": _flux2_klein,
    "qwen-image": _qwen_image, "flux1": _flux1,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """The command line: create a model and print its path."""
    parser = argparse.ArgumentParser(prog="python -m training.tiny.base", description="make a tiny base model")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--family", choices=sorted(_MAKERS), default="sd15")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    given = parser.parse_args(arguments)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    was_there = (given.out / _DONE).is_file()
    made = make(given.out, given.family, given.seed)
    size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
    print(f"{made}: tiny {given.family}, {size / 1e6:.1f} MB{' (was there already)' if was_there else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
