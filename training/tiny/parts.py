"""The parts that tiny base models share: autoencoders, tokenizers and schedulers."""

from typing import Any, cast

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTokenizer, Qwen2Tokenizer, T5Config, T5EncoderModel, T5Tokenizer

from training.tiny.words import QWEN_MARKS, clip_vocabulary, qwen_vocabulary, t5_vocabulary

lib: Any = diffusers  # mypy does not see its classes
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def autoencoder(channels: int, scaling: float, shift: float = 0.0, **more: Any) -> Any:
    """An autoencoder with the shape and scaling of a real one: 64 px become 8 x 8 latents."""
    vae = lib.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=scaling,
        shift_factor=shift or None,
        **more,
    )
    normalise(vae, channels, torch.full((channels,), 1.0 / scaling), torch.full((channels,), shift))
    return vae


def normalise(vae: Any, channels: int, size: torch.Tensor, offset: torch.Tensor) -> None:
    """Normalise the latents so that pictures differ, as with real weights: mean `offset`, deviation `size` per channel.

    Random weights give all pictures nearly the same latents, lost in the noise of their distribution. This measures
    latents of pictures with coarse random colours, and corrects the encoder's last layer.
    """
    coarse = torch.nn.functional.interpolate(torch.rand(16, 3, 4, 4) * 2 - 1, size=64, mode="bilinear")
    last = vae.encoder.conv_out if vae.quant_conv is None else vae.quant_conv
    is_video = "temperal_downsample" in vae.config
    if vae.config.get("in_channels", 3) == 4:
        coarse = torch.cat([coarse, torch.ones_like(coarse[:, :1])], dim=1)
    with torch.no_grad():
        mean = vae.encode(coarse.unsqueeze(2) if is_video else coarse).latent_dist.mean
        mean = mean.squeeze(2) if is_video else mean
        gain = size / mean.std((0, 2, 3))
        last.weight[:channels].mul_(gain.view(-1, *[1] * (last.weight.ndim - 1)))
        last.bias[:channels].sub_(mean.mean((0, 2, 3))).mul_(gain).add_(offset)
        last.weight[channels:].zero_()
        last.bias[channels:].fill_(-12.0)  # a log-variance: real ones are between -10 and -20


def clip_tokenizer() -> Any:
    vocabulary, merges = clip_vocabulary()
    return CLIPTokenizer(vocab=vocabulary, merges=cast(Any, merges), model_max_length=77)


def clip_config(width: int, tokenizer: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def noise_scheduler(prediction: str) -> Any:
    """The noise schedule of Stable Diffusion."""
    return lib.DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        steps_offset=1,
        prediction_type=prediction,
    )


def qwen_tokenizer(longest: int) -> Any:
    vocabulary, merges = qwen_vocabulary()
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary, merges=cast(Any, merges), model_max_length=longest, extra_special_tokens=list(QWEN_MARKS[1:])
    )
    tokenizer.chat_template = _CHAT
    return tokenizer


def t5(width: int, longest: int) -> tuple[Any, Any]:
    """A tokenizer that reads `longest` tokens, and its encoder."""
    tokenizer = T5Tokenizer(vocab=t5_vocabulary(), extra_ids=0, model_max_length=longest)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=16, d_ff=2 * width, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu", dropout_rate=0.0,
    )  # fmt: skip
    return tokenizer, T5EncoderModel(config)


def flow_scheduler(**config: Any) -> Any:
    return lib.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, **config)


def lessen(last: torch.nn.Module) -> None:
    """A random last layer gives three times the magnitude of the flow that it should predict."""
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(0.2)
