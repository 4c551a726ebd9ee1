"""The record of Z-Image, and of its few-step variant Z-Image-Turbo."""

import re
from collections.abc import Mapping

from training.families.record import (
    AiToolkit,
    BaseModel,
    Drawing,
    Family,
    LoraNames,
    Naming,
    Price,
    SingleFile,
    Sizes,
    Variant,
)
from training.families.records.encoder_configs import FLUX_AUTOENCODER, QWEN3_4B
from training.families.weights import checkpoint_names

_TRAINED = r"attention\.to_(q|k|v|out\.0)|feed_forward\.w[123]"
_MODULES = re.compile(
    r"(layers|noise_refiner|context_refiner)\.\d+\.(attention|feed_forward|adaLN_modulation)\b.*|"
    r"(all_)?(x_embedder|final_layer)\b.*|cap_embedder\.\d|t_embedder\.mlp\.\d"
)
_PREFIXES = {
    "transformer": ("model.diffusion_model.", "diffusion_model.", ""),
    "vae": ("vae.", "first_stage_model."),
    "text_encoder": ("text_encoders.qwen3_4b.transformer.model.",),
}
_MARK = "cap_embedder.0.weight"


def _is_z_image(inputs: Mapping[str, int]) -> bool:
    """No other family has such names: `layers` alone would be a text encoder's."""
    return any(name.startswith("transformer.") and _MODULES.fullmatch(name, len("transformer.")) for name in inputs)


def _is_file(kinds: Mapping[str, str]) -> bool:
    return any(prefix + _MARK in kinds for prefix in _PREFIXES["transformer"])


FAMILY = Family(
    name="z-image",
    title="Z-Image",
    base_models=(
        BaseModel(
            "z-image-turbo",
            "z-image",
            "Tongyi-MAI/Z-Image-Turbo",
            "Z-Image Turbo",
            "Draws in eight steps.",
            "Apache-2.0",
        ),
        BaseModel(
            "z-image",
            "z-image",
            "Tongyi-MAI/Z-Image",
            "Z-Image",
            "Z-Image before distillation: draws more slowly, trains best.",
            "Apache-2.0",
        ),
    ),
    # Prodigy: with AdamW at 1e-4 Z-Image did not converge in a comparison of models on 24 photos (modl.run, 2026-03).
    recipe={
        "rank": 16,
        "alpha": 16.0,
        "optimizer": "prodigy",
        "learning_rate": 1.0,
        "resolution": 1024,
        "epochs": 100,
    },
    price=Price(800, 1024),
    seconds_per_step=1.1,
    drawing=Drawing(28, 4.0, 1024),
    few_steps=Drawing(9, 0.0, 1024),
    previews=(28, 5.0),
    lora=LoraNames(
        naming=Naming(
            "diffusion_model.",
            ".lora_A.weight",
            ".lora_B.weight",
            False,
            re.compile(rf"layers\.\d+\.({_TRAINED}|adaLN_modulation\.0)"),
            "BF16",
        ),
        form="comfyui",
        readers="training.lora.z_image_readers",
        is_of=_is_z_image,
        example={f"layers.0.attention.{part}": 3840 for part in ("to_q", "to_k", "to_v", "to_out.0")},
        modules=_MODULES,
        original=(
            (r"(.*\.attention)\.qkv", (r"\1.to_q", r"\1.to_k", r"\1.to_v")),
            (r"(.*\.attention)\.out", (r"\1.to_out.0",)),
            (r"(x_embedder|final_layer)((?:\..*)?)", (r"all_\1.2-1\2",)),
        ),
        words=(
            "attention",
            "qkv",
            "feed_forward",
            "w1",
            "w2",
            "w3",
            "adaLN_modulation",
            "noise_refiner",
            "context_refiner",
            "cap_embedder",
            "t_embedder",
            "x_embedder",
            "final_layer",
            "all_x_embedder",
            "all_final_layer",
            "linear",
            "2-1",
        ),
        declared=("z_image", "z-image", "zimage"),
        refused={
            "kohya": "ComfyUI reads kohya's names of z-image only in part: convert to comfyui or peft instead",
        },
        architecture="z-image/lora",
        version="z_image",
    ),
    classes={
        "transformer": "diffusers.ZImageTransformer2DModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.Qwen3Model",
        "tokenizer": "transformers.Qwen2Tokenizer",
        "scheduler": "diffusers.FlowMatchEulerDiscreteScheduler",
    },
    pipeline="ZImagePipeline",
    configs={
        "transformer": {},  # diffusers' defaults are the published model
        "vae": FLUX_AUTOENCODER | {"sample_size": 1024},
        "text_encoder": QWEN3_4B,
        "scheduler": {"num_train_timesteps": 1000, "shift": 3.0},
    },
    home="Tongyi-MAI/Z-Image-Turbo",
    code="training.families.z_image",
    # The linears of the main blocks, without the two refiners before them, as in ai-toolkit's LoRAs.
    targets={
        "attention": rf"layers\.\d+\.({_TRAINED})",
        "all": rf"layers\.\d+\.({_TRAINED}|adaLN_modulation\.0)",
    },
    quantised=rf"(layers|noise_refiner|context_refiner)\.\d+\.({_TRAINED})",
    shares_steps=False,
    latent_channels=16,
    caption_tokens=512,
    encoder_weight_bytes=2,
    sizes=Sizes(
        parameters=6154908736,
        quantised=(6016204800, 39321600),
        encoders=8044936192,
        lora={"attention": 2188800, "all": 2657280},
        modules={"attention": 210, "all": 240},
        sample=(2137366528, 2069286),
        checkpointed=(162610176, 141675),
    ),
    single_file=SingleFile(
        prefixes=_PREFIXES,
        marks={
            "transformer": (_MARK,),
            "vae": ("encoder.conv_in.weight",),
            "text_encoder": ("embed_tokens.weight",),
        },
        sources={
            "transformer": checkpoint_names.z_image,
            "vae": checkpoint_names.vae,
            "text_encoder": checkpoint_names.same,
        },
        is_of=_is_file,
    ),
    toolkit=AiToolkit(
        arch="zimage",
        precision="bf16",
        prediction="flow",
        version="zimage",
        model={"quantize": True, "qtype": "qfloat8", "quantize_te": True, "qtype_te": "qfloat8", "low_vram": True},
        train={
            "noise_scheduler": "flowmatch",
            "timestep_type": "weighted",
            "content_or_style": "balanced",
            "cache_text_embeddings": True,
        },
        sample={"sampler": "flowmatch", "guidance_scale": 4.0, "sample_steps": 30},
        variants=(
            Variant(
                re.compile(r"de-?turbo"),
                # It has only the denoiser.
                {"arch": "zimage:deturbo", "extras_name_or_path": "Tongyi-MAI/Z-Image-Turbo"},
                {"guidance_scale": 3.0, "sample_steps": 25},
            ),
            Variant(
                re.compile("turbo"),
                {
                    "arch": "zimage:turbo",
                    "assistant_lora_path": (
                        "ostris/zimage_turbo_training_adapter/zimage_turbo_training_adapter_v2.safetensors"
                    ),
                },
                {"guidance_scale": 1.0, "sample_steps": 9},
            ),
        ),
        # Its own default is all linear layers of these blocks.
        layers={"attention": ("attention.", "feed_forward."), "all": ("layers.",)},
        billions=(6.2, 4.0),
    ),
)
