"""The record of Qwen-Image, in all versions that draw from text with its first network: 2508 and 2512."""

import re
from collections.abc import Callable, Mapping, Sequence

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
    WrittenModule,
)
from training.families.records.encoder_configs import QWEN2_5_VL_7B, QWEN_IMAGE_SCHEDULER
from training.families.records.lora_files import KOHYA, NO_DORA, PEFT, alike, underscored
from training.families.records.toolkit import FLOW, FLOW_SAMPLE, QUANTISED
from training.families.weights import checkpoint_names
from training.families.workflow import Workflow

_ATTENTION = r"transformer_blocks\.\d+\.attn\.(to_(q|k|v|out\.0)|add_(q|k|v)_proj|to_add_out)"
_ALL = _ATTENTION + r"|transformer_blocks\.\d+\.(img|txt)_mlp\.net\.(0\.proj|2)"
_MODULES = re.compile(
    _ALL + r"|transformer_blocks\.\d+\.(img|txt)_mod\.1|img_in|txt_in|proj_out|norm_out\.linear|"
    r"time_text_embed\.timestep_embedder\.linear_[12]"
)
_WIDTH, _BLOCKS = 3072, 60
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
_MARK = "transformer_blocks.0.img_mlp.net.0.proj.weight"


# ComfyUI has the names of diffusers.
_COMFYUI = (
    r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out|norm_(added_)?[qk])|"
    r"(img|txt)_(mlp\.net\.(0\.proj|2)|mod\.1))|img_in|txt_in|txt_norm|proj_out|norm_out\.linear|"
    r"time_text_embed\.timestep_embedder\.linear_[12]"
)
_SIZES = Sizes(
    parameters=20430401088,
    quantised=(13589544960, 37748736),
    encoders=16584333312,
    lora={"attention": 2949120, "all": 6635520},
    modules={"attention": 480, "all": 720},
    sample=(1730445824, 1676526),
    checkpointed=(141741056, 133844),
)


def _is_of(inputs: Mapping[str, int]) -> bool:
    """Attention alone has the same names in Stable Diffusion 3, which is not as wide."""
    names = {name.removeprefix("transformer."): width for name, width in inputs.items()}
    has_own = any(re.search(r"\.(img|txt)_(mlp|mod)\.|add_[qkv]_proj|to_add_out", name) for name in names)
    stream = {width for name, width in names.items() if re.search(r"attn\.(to|add)_[qkv]|_mlp\.net\.0", name)}
    return has_own and stream == {_WIDTH} and all(_MODULES.fullmatch(name) for name in names)


def _diffusers(modules: Sequence[WrittenModule]) -> Callable[[WrittenModule], bool]:
    """It fails on an alpha beside the names of its own form."""
    prefix, suffix = alike(modules)
    has_alphas = any(module.has_alpha for module in modules)
    fits = {
        "transformer.": suffix == PEFT and not has_alphas,
        "diffusion_model.": suffix == PEFT or (suffix == KOHYA and has_alphas),
        "": suffix == PEFT and has_alphas,
        "lora_unet_": suffix == KOHYA and has_alphas,
    }.get(str(prefix), False)
    return lambda _: fits


def _is_file(kinds: Mapping[str, str]) -> bool:
    return any(prefix + _MARK in kinds for prefix in _PREFIXES)


FAMILY = Family(
    name="qwen-image",
    title="Qwen-Image",
    base_models=(
        BaseModel(
            "qwen-image-2512", "qwen-image", "Qwen/Qwen-Image-2512", "Qwen-Image 2512",
            "Very large: follows long captions, and writes text.", "Apache-2.0",
        ),
        BaseModel(
            "qwen-image", "qwen-image", "Qwen/Qwen-Image", "Qwen-Image", "The first version of Qwen-Image.",
            "Apache-2.0",
        ),
    ),
    recipe={"rank": 16, "alpha": 16.0, "learning_rate": 5e-5, "resolution": 1024, "epochs": 100},
    price=Price(3000, 1024),
    seconds_per_step=4.5,
    drawing=Drawing(50, 4.0, 1024),
    previews=(28, 4.0),
    lora=LoraNames(
        naming=Naming(
            "transformer.", ".lora_A.weight", ".lora_B.weight", False, re.compile(_ALL), "BF16", alpha=False
        ),
        form="peft",
        diffusers=_diffusers,
        comfyui=re.compile(
            rf"(diffusion_model\.|transformer\.)?({_COMFYUI})|(lycoris_|lora_unet_)({underscored(_COMFYUI)})"
        ),
        is_of=_is_of,
        example={
            f"transformer_blocks.0.attn.{part}": _WIDTH for part in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj")
        },
        modules=_MODULES,
        words=(
            "attn", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "img_mlp", "txt_mlp", "img_mod", "txt_mod",
            "img_in", "txt_in",
        ),
        declared=("qwen_image", "qwen-image"),
        kind="Qwen-Image",
        architecture="qwen-image/lora",
        version="qwen_image",
    ),
    classes={
        "transformer": "diffusers.QwenImageTransformer2DModel",
        "vae": "diffusers.AutoencoderKLQwenImage",
        "text_encoder": "transformers.Qwen2_5_VLForConditionalGeneration",
        "tokenizer": "transformers.Qwen2Tokenizer",
        "scheduler": "diffusers.FlowMatchEulerDiscreteScheduler",
    },
    pipeline="QwenImagePipeline",
    guidance="true_cfg_scale",
    call={"negative_prompt": " "},  # without one there is no guidance
    configs={
        "transformer": {},  # diffusers' defaults are the published model
        "vae": {},
        "text_encoder": QWEN2_5_VL_7B,
        "scheduler": QWEN_IMAGE_SCHEDULER,
    },
    workflow=Workflow(
        unet="qwen_image_fp8_e4m3fn.safetensors",
        clips=("qwen_2.5_vl_7b_fp8_scaled.safetensors",),
        clip_type="qwen_image",
        vae="qwen_image_vae.safetensors",
        shift=3.1,
    ),
    home="Qwen/Qwen-Image",
    code="training.families.qwen_image",
    targets={"attention": _ATTENTION, "all": _ALL},
    quantised=_ALL,
    shares_steps=False,
    latent_channels=16,
    caption_tokens=1024,
    encoder_weight_bytes=2,
    sizes=_SIZES,
    single_file=SingleFile(
        prefixes={"transformer": _PREFIXES},
        marks={"transformer": (_MARK,)},
        sources={"transformer": checkpoint_names.same},
        is_of=_is_file,
    ),
    toolkit=AiToolkit(
        arch="qwen_image",
        precision="bf16",
        prediction="flow",
        version="qwen_image",
        model=QUANTISED | {"low_vram": True},
        train=FLOW | {"timestep_type": "weighted"},
        sample=FLOW_SAMPLE,
        layers={"attention": (".attn.",), "all": (".attn.", "_mlp.")},
        billions=(20.4, 8.3),
        recovery="uint3|ostris/accuracy_recovery_adapters/qwen_image_torchao_uint3.safetensors",
        variants=(
            Variant(
                re.compile("2512"),
                {"arch": "qwen_image:2512"},
                recovery="uint3|ostris/accuracy_recovery_adapters/qwen_image_2512_torchao_uint3.safetensors",
            ),
        ),
    ),
    refused=NO_DORA,
)  # fmt: skip
