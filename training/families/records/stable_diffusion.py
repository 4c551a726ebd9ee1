"""The records of Stable Diffusion 1.x (sd15) and Stable Diffusion XL (sdxl)."""

import re
from collections.abc import Mapping
from typing import Any

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
    TextSizes,
)
from training.families.records import unet_names
from training.families.records.encoder_configs import CLIP_BIG_G, CLIP_L, autoencoder
from training.families.weights import checkpoint_names
from training.families.workflow import Workflow

_MODULES = re.compile(
    r"(down_blocks_\d+|mid_block|up_blocks_\d+)_(attentions_\d+_"
    r"(proj_in|proj_out|transformer_blocks_\d+_(attn[12]_to_(q|k|v|out_0)|ff_net_0_proj|ff_net_2))|"
    r"resnets_\d+_(conv1|conv2|conv_shortcut|time_emb_proj)|(down|up)samplers_0_conv)"
)
# The standard set of kohya and diffusers: q, k, v and output of each attention layer.
_ATTENTION = r".*\.attn[12]\.to_(q|k|v|out\.0)"
# Also the feed-forward layers and the projections around each transformer.
_ALL = _ATTENTION + r"|.*\.attentions\.\d+\.(proj_(in|out)|transformer_blocks\.\d+\.ff\.net\.(0\.proj|2))"
_TARGETS = {
    "attention": _ATTENTION,
    "all": _ALL,
    # Also the residual blocks, and what halves and doubles the size: the layers of kohya's LoCon.
    "convolutions": _ALL
    + r"|.*\.resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)|.*\.(down|up)samplers\.0\.conv",
}
# Every linear of a text encoder's layers, as in kohya's trainer.
_TEXT_TARGETS = r"text_encoder(_2)?\.text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
_TEXT_MODULES = re.compile(r"text_model_encoder_layers_\d+_(self_attn_(q|k|v|out)_proj|mlp_fc[12])")
_NOISE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "steps_offset": 1,
}
_MARKS = {
    "unet": ("input_blocks.0.0.weight",),
    "vae": ("encoder.conv_in.weight",),
    "text_encoder": ("encoder.layers.0.layer_norm1.weight",),
    "text_encoder_2": ("transformer.resblocks.0.ln_1.weight",),
}
_SOURCES = {"unet": checkpoint_names.unet, "vae": checkpoint_names.vae, "text_encoder": checkpoint_names.text}
_PARTS = ("to_q", "to_k", "to_v", "to_out.0")
_UNET_FILE = "model.diffusion_model.input_blocks.0.0.weight"


def _widths_of(inputs: Mapping[str, int], ends: tuple[str, ...]) -> set[int]:
    return {width for name, width in inputs.items() if name.endswith(ends)}


def context_widths(inputs: Mapping[str, int]) -> set[int]:
    """The width of captions, which cross-attention reads."""
    return _widths_of(inputs, ("attn2.to_k", "attn2.to_v"))


def _is_sd15(inputs: Mapping[str, int]) -> bool:
    if any(re.match(r"unet\.(down_blocks\.0\.attentions|up_blocks\.3)\.", name) for name in inputs):
        return True
    return not _has_sdxl_names(inputs) and context_widths(inputs) == {768}


def _is_sdxl(inputs: Mapping[str, int]) -> bool:
    if any(re.match(r"unet\.(down_blocks\.0\.attentions|up_blocks\.3)\.", name) for name in inputs):
        return False
    return _has_sdxl_names(inputs) or context_widths(inputs) == {2048}


def _has_sdxl_names(inputs: Mapping[str, int]) -> bool:
    return any(name.startswith(("text_encoder_2.", "unet.up_blocks.0.attentions.")) for name in inputs)


def _is_xl_file(kinds: Mapping[str, str]) -> bool:
    is_xl = any(name.startswith(("conditioner.", "model.diffusion_model.label_emb.")) for name in kinds)
    return _UNET_FILE in kinds and is_xl


def _is_sd15_file(kinds: Mapping[str, str]) -> bool:
    return _UNET_FILE in kinds and not _is_xl_file(kinds)


def _toolkit(arch: str, precision: str, version: str, billions: tuple[float, float], **train: Any) -> AiToolkit:
    attention = ("attn1.to_", "attn2.to_")
    return AiToolkit(
        arch=arch,
        precision=precision,
        prediction="epsilon",
        version=version,
        billions=billions,
        model={"quantize": False, "quantize_te": False},
        train={"noise_scheduler": "ddpm", **train},
        sample={"sampler": "ddpm", "guidance_scale": 6.0, "sample_steps": 20},
        # The layers that Imprint trains; ai-toolkit's default is every linear and 1x1 convolution of the UNet. Residual
        # blocks have no names such as these.
        layers={"attention": attention, "all": (*attention, "ff.net.", "proj_in", "proj_out")},
        has_alpha=True,
        prefix="lora_unet_",
        weightings=frozenset({"none", "min_snr"}),
    )


SD15 = Family(
    name="sd15",
    title="Stable Diffusion 1.x",
    base_models=(
        BaseModel(
            "sd15",
            "sd15",
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "Stable Diffusion 1.5",
            "Small and fast; runs on every GPU.",
            "CreativeML OpenRAIL-M",
        ),
    ),
    recipe={"rank": 4, "alpha": 32.0, "learning_rate": 1e-4, "resolution": 512, "epochs": 100},
    price=Price(100, 512),
    seconds_per_step=0.25,
    drawing=Drawing(25, 7.5, 512),
    previews=(20, 5.0),
    lora=LoraNames(
        # float32: 3 MB at rank 4. The larger families use the precision in which their base models draw.
        naming=Naming(
            "lora_unet_",
            ".lora_down.weight",
            ".lora_up.weight",
            True,
            _MODULES,
            "F32",
            {"text_encoder": "lora_te_"},
            _TEXT_MODULES,
        ),
        form="kohya",
        diffusers=unet_names.diffusers(is_xl=False),
        comfyui=unet_names.comfyui(is_xl=False),
        comfyui_published=unet_names.comfyui(is_xl=False, is_published=True),
        is_of_automatic1111=True,
        is_of=_is_sd15,
        example={f"down_blocks.0.attentions.0.transformer_blocks.0.attn1.{part}": 320 for part in _PARTS},
        declared=("sd_v1", "stable-diffusion-v1"),
        architecture="stable-diffusion-v1/lora",
        version="sd_v1",
    ),
    classes={
        "unet": "diffusers.UNet2DConditionModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.CLIPTextModel",
        "tokenizer": "transformers.CLIPTokenizer",
        "scheduler": "diffusers.EulerDiscreteScheduler",
    },
    pipeline="StableDiffusionPipeline",
    # No safety checker: training does not download it, and only the owner sees these pictures.
    pipeline_arguments={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    configs={
        "unet": {
            "sample_size": 64,
            "block_out_channels": [320, 640, 1280, 1280],
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
            "layers_per_block": 2,
            "in_channels": 4,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
        },
        "vae": autoencoder(4, sample_size=512, scaling_factor=0.18215),
        "text_encoder": CLIP_L,
        "scheduler": _NOISE,
    },
    workflow=Workflow(file="v1-5-pruned-emaonly-fp16.safetensors", latent="EmptyLatentImage", scheduler="normal"),
    home="stable-diffusion-v1-5/stable-diffusion-v1-5",
    code="training.families.sd15",
    targets=_TARGETS,
    quantised=_ALL,
    text_targets=_TEXT_TARGETS,
    sizes=Sizes(
        parameters=859520964,
        quantised=(242196480, 13107200),
        encoders=492241920,
        lora={"attention": 199296, "all": 423936, "convolutions": 1050816},
        modules={"attention": 128, "all": 192, "convolutions": 278},
        sample=(5657088, 211726),
        checkpointed=(1835008, 57696),
        spatial=544000,
        text=TextSizes(parameters=123060480, lora=165888, modules=72, sample=31279104, work=17),
    ),
    single_file=SingleFile(
        prefixes={
            "unet": ("model.diffusion_model.",),
            "vae": ("first_stage_model.", "vae."),
            "text_encoder": ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."),
        },
        marks=_MARKS,
        sources=_SOURCES,
        is_of=_is_sd15_file,
    ),
    toolkit=_toolkit("sd15", "float32", "sd_1.5", (0.9, 0.1), gradient_checkpointing=False),
)

SDXL = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    base_models=(
        BaseModel(
            "sdxl",
            "sdxl",
            "stabilityai/stable-diffusion-xl-base-1.0",
            "Stable Diffusion XL",
            "Larger pictures with finer detail.",
            "CreativeML OpenRAIL++-M",
        ),
    ),
    recipe={"rank": 8, "alpha": 16.0, "learning_rate": 1e-4, "resolution": 1024, "epochs": 100},
    price=Price(400, 1024),
    seconds_per_step=0.9,
    drawing=Drawing(30, 5.0, 1024),
    previews=(20, 5.0),
    lora=LoraNames(
        naming=Naming(
            "lora_unet_",
            ".lora_down.weight",
            ".lora_up.weight",
            True,
            _MODULES,
            "F16",
            {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
            _TEXT_MODULES,
        ),
        form="kohya",
        diffusers=unet_names.diffusers(is_xl=True),
        comfyui=unet_names.comfyui(is_xl=True),
        comfyui_published=unet_names.comfyui(is_xl=True, is_published=True),
        is_of_automatic1111=True,
        is_of=_is_sdxl,
        example={f"down_blocks.1.attentions.0.transformer_blocks.0.attn1.{part}": 640 for part in _PARTS},
        declared=("sdxl", "stable-diffusion-xl"),
        architecture="stable-diffusion-xl-v1-base/lora",
        version="sdxl_base_v1-0",
    ),
    classes={
        "unet": "diffusers.UNet2DConditionModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.CLIPTextModel",
        "text_encoder_2": "transformers.CLIPTextModelWithProjection",
        "tokenizer": "transformers.CLIPTokenizer",
        "tokenizer_2": "transformers.CLIPTokenizer",
        "scheduler": "diffusers.EulerDiscreteScheduler",
    },
    pipeline="StableDiffusionXLPipeline",
    pipeline_arguments={"add_watermarker": False},
    configs={
        "unet": {
            "sample_size": 128,
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
            "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "layers_per_block": 2,
            "in_channels": 4,
            "cross_attention_dim": 2048,
            "attention_head_dim": [5, 10, 20],
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "vae": autoencoder(4, sample_size=1024, scaling_factor=0.13025, force_upcast=True),
        "text_encoder": CLIP_L,
        "text_encoder_2": CLIP_BIG_G,
        "scheduler": _NOISE,
    },
    workflow=Workflow(file="sd_xl_base_1.0.safetensors", latent="EmptyLatentImage", scheduler="normal"),
    home="stabilityai/stable-diffusion-xl-base-1.0",
    code="training.families.sdxl",
    targets=_TARGETS,
    quantised=_ALL,
    text_targets=_TEXT_TARGETS,
    sizes=Sizes(
        parameters=2567463684,
        quantised=(2207744000, 13107200),
        encoders=3264327680,
        lora={"attention": 1451520, "all": 2659840, "convolutions": 3074240},
        modules={"attention": 560, "all": 722, "convolutions": 788},
        sample=(37750784, 369112),
        checkpointed=(11945472, 33440),
        spatial=355840,
        text=TextSizes(parameters=817720320, lora=903168, modules=264, sample=171779584, work=31),
    ),
    single_file=SingleFile(
        prefixes={
            "unet": ("model.diffusion_model.",),
            "vae": ("first_stage_model.", "vae."),
            "text_encoder": ("conditioner.embedders.0.transformer.text_model.",),
            "text_encoder_2": ("conditioner.embedders.1.model.",),
        },
        marks=_MARKS,
        sources=_SOURCES | {"text_encoder_2": checkpoint_names.open_clip},
        is_of=_is_xl_file,
    ),
    toolkit=_toolkit("sdxl", "float16", "sdxl_1.0", (2.6, 0.8)),
)
