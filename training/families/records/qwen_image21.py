"""The record of Qwen-Image 2.1: another network than Qwen-Image's, a third of its size, with its own text encoder."""

import re
from collections.abc import Callable, Mapping, Sequence

from training.families.record import (
    AiToolkit,
    BaseModel,
    Config,
    Drawing,
    Family,
    LoraNames,
    Naming,
    Price,
    SingleFile,
    Sizes,
    Source,
    WrittenModule,
)
from training.families.records.encoder_configs import QWEN3_VL_8B, QWEN_IMAGE_SCHEDULER
from training.families.records.lora_files import KOHYA, NO_DORA, PEFT, alike, of_own_code
from training.families.records.toolkit import FLOW, FLOW_SAMPLE, QUANTISED
from training.families.workflow import Workflow

_BLOCK = r"transformer_blocks\.\d+\."
_ATTENTION = _BLOCK + r"attn\.to_(q|k|v|out\.0)"
_ALL = rf"{_ATTENTION}|{_BLOCK}img_mlp\.(proj|gate_layer|out)"
_OTHERS = (
    r"img_in|txt_in\.(in|out)_layer|modulation\.1|proj_out|norm_out\.linear|"
    r"time_text_embed\.timestep_embedder\.linear_[12]"
)
_MODULES = re.compile(f"{_ALL}|{_OTHERS}")
_WIDTH = 4096
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
_MARK = "txt_in.text_norm.weight"
# ComfyUI and ai-toolkit have diffusers' names, but one layer for the gate and the input of the feed-forward.
_GATED = "img_mlp.gate_up"
_HALVES = ("img_mlp.gate_layer", "img_mlp.proj")
_ORIGINAL = (
    *(
        (rf"transformer_blocks\.(\d+)\.{re.escape(name)}", (rf"transformer_blocks.\1.{name}",))
        for name in ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "img_mlp.out")
    ),
    (rf"transformer_blocks\.(\d+)\.{re.escape(_GATED)}", tuple(rf"transformer_blocks.\1.{half}" for half in _HALVES)),
)
_SAME = rf"{_BLOCK}(attn\.(to_[qkv]|to_out\.0|norm_[qk])|img_mlp\.out)|{_OTHERS}|txt_in\.text_norm"
_SIZES = Sizes(
    parameters=7115124736,
    quantised=(6979321856, 50331648),
    encoders=17534247392,
    lora={"attention": 1048576, "all": 2621440},
    modules={"attention": 128, "all": 224},
    sample=(1838676992, 7149560),
    checkpointed=(149206528, 549809),
)


def _is_of(inputs: Mapping[str, int]) -> bool:
    names = {name.removeprefix("transformer."): width for name, width in inputs.items()}
    widths = {3 * _WIDTH if name.endswith("img_mlp.out") else _WIDTH for name in names}
    stream = {name: width for name, width in names.items() if name.startswith("transformer_blocks.")}
    return (
        bool(stream)
        and all(_MODULES.fullmatch(name) or name.endswith(_GATED) for name in names)
        and set(stream.values()) <= widths
    )


def _diffusers(modules: Sequence[WrittenModule]) -> Callable[[WrittenModule], bool]:
    """It fails on an alpha beside the names of its own form, and passes over names that it does not know."""
    prefix, suffix = alike(modules)
    has_alphas = any(module.has_alpha for module in modules)
    fits = {
        "transformer.": suffix == PEFT and not has_alphas,
        "diffusion_model.": suffix == PEFT or (suffix == KOHYA and has_alphas),
        "": suffix == PEFT and has_alphas,
        "lora_unet_": suffix == KOHYA and has_alphas,
    }.get(str(prefix), False)
    # It takes the underscores of a name that it does not know for dots.
    unknown = (_GATED, "img_mlp.gate_layer") if prefix == "lora_unet_" else (_GATED,)
    return lambda module: fits and not module.name.written.endswith(unknown)


def _is_file(kinds: Mapping[str, str]) -> bool:
    return any(prefix + _MARK in kinds for prefix in _PREFIXES)


def _source(name: str, _config: Config) -> Source:
    """ComfyUI's file. One with diffusers' names is read too."""
    for half, end in enumerate(_HALVES):
        if name.endswith(f".{end}.weight"):
            return Source(name.replace(end, _GATED), rows=(half, half + 1, 2))
    return Source(name)


FAMILY = Family(
    name="qwen-image-21",
    title="Qwen-Image 2.1",
    base_models=(
        BaseModel(
            "qwen-image-21", "qwen-image-21", "Qwen/Qwen-Image-2.1", "Qwen-Image 2.1",
            "A third of the size of Qwen-Image: follows long captions, and writes text.", "Qwen Research License",
            "not for commercial use",
        ),
    ),
    recipe={"rank": 16, "alpha": 16.0, "learning_rate": 1e-4, "resolution": 1024, "epochs": 100},
    price=Price(1200, 1024),
    seconds_per_step=1.8,
    drawing=Drawing(40, 1.0, 1024),
    previews=(25, 1.0),
    few_steps=Drawing(8, 1.0, 1024),
    lora=LoraNames(
        naming=Naming(
            "transformer.", ".lora_A.weight", ".lora_B.weight", False, re.compile(_ALL), "BF16", alpha=False
        ),
        form="peft",
        diffusers=_diffusers,
        comfyui=re.compile(
            of_own_code(rf"{_SAME}|{_BLOCK}{re.escape(_GATED)}", rf"{_SAME}|{_BLOCK}img_mlp\.(gate_layer|proj)")
        ),
        is_of=_is_of,
        example={f"transformer_blocks.0.attn.{part}": _WIDTH for part in ("to_q", "to_k", "to_v", "to_out.0")},
        modules=_MODULES,
        original=_ORIGINAL,
        words=(
            "attn", "img_mlp", "gate_up", "gate_layer", "img_in", "txt_in", "in_layer", "out_layer", "modulation",
            "norm_out", "linear", "time_text_embed", "timestep_embedder",
        ),
        # ai-toolkit's is the beginning of Qwen-Image 2512's, but the whole word.
        declared=(
            "qwen_image_2.1", "qwen_image_2_1", "qwen_image_21", "qwen-image-2.1", "qwen-image-21", "qwen_image_2 ",
        ),
        kind="Qwen-Image 2.1",
        is_fused=True,
        architecture="qwen-image-2.1/lora",
        version="qwen_image_2.1",
    ),
    classes={
        "transformer": "diffusers.QwenImage21Transformer2DModel",
        "vae": "diffusers.AutoencoderKLQwenImage21",
        "text_encoder": "transformers.Qwen3VLForConditionalGeneration",
        "processor": "transformers.Qwen2Tokenizer",  # of which only the tokenizer is used
        "scheduler": "diffusers.FlowMatchEulerDiscreteScheduler",
    },
    pipeline="QwenImage21Pipeline",
    guidance="true_cfg_scale",
    call={"negative_prompt": " "},  # without one there is no guidance
    configs={
        "transformer": {},  # diffusers' defaults are the published model
        "vae": {},
        "text_encoder": QWEN3_VL_8B,
        "scheduler": QWEN_IMAGE_SCHEDULER,
    },
    workflow=Workflow(
        unet="qwen_image_2.1_bf16.safetensors",
        clips=("qwen3vl_8b_bf16.safetensors",),
        clip_type="qwen_image",
        vae="qwen_image_2.1_vae_bf16.safetensors",
        latent="EmptyLatentImage",
    ),
    home="Qwen/Qwen-Image-2.1",
    code="training.families.qwen_image21",
    targets={"attention": _ATTENTION, "all": _ALL},
    quantised=_ALL,
    shares_steps=False,
    latent_channels=64,
    latent_pixels=16,
    caption_tokens=1024,
    encoder_weight_bytes=2,
    sizes=_SIZES,
    single_file=SingleFile(
        prefixes={"transformer": _PREFIXES},
        marks={"transformer": (_MARK,)},
        sources={"transformer": _source},
        is_of=_is_file,
    ),
    toolkit=AiToolkit(
        arch="qwen_image_2",
        precision="bf16",
        prediction="flow",
        version="qwen_image_2",
        model=QUANTISED | {"low_vram": True},
        train=FLOW | {"timestep_type": "sigmoid"},
        sample=FLOW_SAMPLE | {"guidance_scale": 1.0},
        layers={"attention": (".attn.",), "all": (".attn.", "_mlp.")},
        billions=(7.1, 8.8),
    ),
    refused=NO_DORA,
)  # fmt: skip
