"""The pocket model's networks: those of Stable Diffusion 1.x, with few channels and short captions."""

from typing import Any, cast

import diffusers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo.pocket.words import MAX_TOKENS, vocabulary

lib: Any = diffusers  # its classes are untyped to the checker

LATENT_SIDE = 16  # 64 pixels, four times smaller: eight times would leave too little of a small face
LATENT_CHANNELS = 8  # Stable Diffusion's 4 are too few for small faces after an hour of training
TEXT_WIDTH = 96
SCALING = 0.18215  # Stable Diffusion's; latents are brought to this deviation, see autoencoder.normalise


def make_vae() -> Any:
    """An autoencoder from 64 x 64 x 3 to 16 x 16 x 8."""
    return lib.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=SCALING,
        mid_block_add_attention=False,
    )


def tokenizer() -> Any:
    """CLIP's tokenizer with the small vocabulary: at most `MAX_TOKENS` tokens, padded with the end of the text."""
    words, merges = vocabulary()
    return CLIPTokenizer(vocab=words, merges=cast(Any, merges), model_max_length=MAX_TOKENS)


def make_text_encoder() -> CLIPTextModel:
    """Two layers that read a caption from left to right."""
    words = tokenizer()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )


def make_unet() -> Any:
    """Three levels: 16 x 16 without attention, which would take most of the time; 8 x 8 and 4 x 4 with attention."""
    return lib.UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 96, 128),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )


def noise_schedule() -> dict[str, Any]:
    """Stable Diffusion's schedule, but the last time is pure noise (https://arxiv.org/abs/2305.08891).

    Otherwise, in so few latents, the mean colour would be visible at the last time, and drawing would start from a
    wrong one. Noise cannot be predicted from pure noise, so the prediction is velocity.
    """
    return {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "steps_offset": 1,
    }
