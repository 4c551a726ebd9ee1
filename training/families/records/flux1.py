"""The record of FLUX.1: [dev], [schnell] and Krea-dev, one network whose LoRAs have the same names."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence

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
    Variant,
    WrittenModule,
)
from training.families.records.encoder_configs import CLIP_L, FLUX_AUTOENCODER, FLUX_SCHEDULER, T5_XXL
from training.families.records.lora_files import KOHYA, NO_DORA, PEFT, alike, of_own_code
from training.families.records.toolkit import FLOW, FLOW_SAMPLE, QUANTISED
from training.families.weights import checkpoint_names
from training.families.workflow import Workflow

ATTENTION = (
    r"transformer_blocks\.\d+\.attn\.(to_(q|k|v|out\.0)|add_(q|k|v)_proj|to_add_out)|"
    r"single_transformer_blocks\.\d+\.attn\.to_(q|k|v)"
)
ALL = (
    ATTENTION + r"|transformer_blocks\.\d+\.ff(_context)?\.net\.(0\.proj|2)|"
    r"single_transformer_blocks\.\d+\.proj_(mlp|out)"
)
_MODULES = re.compile(
    ALL + r"|transformer_blocks\.\d+\.norm1(_context)?\.linear|single_transformer_blocks\.\d+\.norm\.linear|"
    r"x_embedder|context_embedder|proj_out|norm_out\.linear|"
    r"time_text_embed\.(timestep|text|guidance)_embedder\.linear_[12]"
)
_WIDTH, _DOUBLES, _SINGLES = 3072, 19, 38
_DOUBLE, _SINGLE = r"double_blocks\.(\d+)\.", r"single_blocks\.(\d+)\."
_MARK = "double_blocks.0.img_mod.lin.weight"  # FLUX.2 and Chroma have no modulation in their blocks
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
# The names of the makers' own code, which kohya's trainer and ComfyUI use.
LAYERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (_DOUBLE + r"img_attn\.qkv", tuple(rf"transformer_blocks.\1.attn.to_{part}" for part in "qkv")),
    (_DOUBLE + r"txt_attn\.qkv", tuple(rf"transformer_blocks.\1.attn.add_{part}_proj" for part in "qkv")),
    (_DOUBLE + r"img_attn\.proj", (r"transformer_blocks.\1.attn.to_out.0",)),
    (_DOUBLE + r"txt_attn\.proj", (r"transformer_blocks.\1.attn.to_add_out",)),
    (_DOUBLE + r"img_mlp\.0", (r"transformer_blocks.\1.ff.net.0.proj",)),
    (_DOUBLE + r"img_mlp\.2", (r"transformer_blocks.\1.ff.net.2",)),
    (_DOUBLE + r"txt_mlp\.0", (r"transformer_blocks.\1.ff_context.net.0.proj",)),
    (_DOUBLE + r"txt_mlp\.2", (r"transformer_blocks.\1.ff_context.net.2",)),
    (
        _SINGLE + "linear1",
        (
            *(rf"single_transformer_blocks.\1.attn.to_{part}" for part in "qkv"),
            r"single_transformer_blocks.\1.proj_mlp",
        ),
    ),
    (_SINGLE + "linear2", (r"single_transformer_blocks.\1.proj_out",)),
)
_ORIGINAL = (
    *LAYERS,
    (_DOUBLE + r"img_mod\.lin", (r"transformer_blocks.\1.norm1.linear",)),
    (_DOUBLE + r"txt_mod\.lin", (r"transformer_blocks.\1.norm1_context.linear",)),
    (_SINGLE + r"modulation\.lin", (r"single_transformer_blocks.\1.norm.linear",)),
)
SHARES = {"proj_mlp": 4}  # the rows of `linear1`
_WEIGHTS = (
    *_ORIGINAL, *checkpoint_names.FLUX, *checkpoint_names.embedder("time_in", "time_text_embed.timestep_embedder"),
    *checkpoint_names.embedder("vector_in", "time_text_embed.text_embedder"),
    *checkpoint_names.embedder("guidance_in", "time_text_embed.guidance_embedder"),
)  # fmt: skip
# The layers that ComfyUI's key map has, of the makers' code and by `flux_to_diffusers`.
_OWN = (
    r"double_blocks\.\d+\.(img|txt)_(attn\.(qkv|proj|norm\.(query|key)_norm)|mlp\.[02]|mod\.lin)|"
    r"single_blocks\.\d+\.(linear[12]|modulation\.lin|norm\.(query|key)_norm)|img_in|txt_in|"
    r"(time|vector|guidance)_in\.(in|out)_layer|final_layer\.(linear|adaLN_modulation\.1)"
)
_MAPPED = (
    r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out|norm_(added_)?[qk])|"
    r"ff(_context)?\.net\.(0\.proj|2)|norm1(_context)?\.linear)|"
    r"single_transformer_blocks\.\d+\.(attn\.(to_[qkv]|norm_[qk])|proj_mlp|proj_out|norm\.linear)|"
    r"x_embedder|context_embedder|proj_out"
)
COMFYUI = re.compile(of_own_code(_OWN, _MAPPED))
WORDS = (
    "double_blocks", "single_blocks", "img_attn", "txt_attn", "img_mlp", "txt_mlp", "qkv", "linear1", "linear2", "attn",
    "single_transformer_blocks", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context", "proj_mlp",
)  # fmt: skip
_INPUTS = {"ff.net.2": 4, "ff_context.net.2": 4, "proj_out": 5}  # of layers that take more than the width
_TERMS = "not for commercial use"


_SIZES = Sizes(
    parameters=11901408320,
    quantised=(8606711808, 47185920),
    encoders=9770742272,
    lora={"attention": 1634304, "all": 4085760},
    modules={"attention": 266, "all": 418},
    sample=(2696485888, 1308906),
    checkpointed=(281064448, 130848),
)


def _is_of(inputs: Mapping[str, int]) -> bool:
    """FLUX.2 has the same names in its own code, but other widths. Qwen-Image shares the names of attention."""
    names = {name.removeprefix("transformer."): width for name, width in inputs.items()}
    if not any(re.match(r"single_(transformer_)?blocks|double_blocks", name) or ".ff" in name for name in names):
        return False
    for name, width in names.items():
        found = re.match(r"(single_)?(?:transformer_blocks|double_blocks|blocks)\.(\d+)\.(.+)", name)
        if found is None:
            if not _MODULES.fullmatch(name):
                return False
            continue
        if not _MODULES.fullmatch(name) and not re.fullmatch(r"(img|txt)_attn\.qkv|linear1", found[3]):
            return False
        if width != _INPUTS.get(found[3], 1) * _WIDTH or int(found[2]) >= (_SINGLES if found[1] else _DOUBLES):
            return False
    return True


def diffusers_reads(modules: Sequence[WrittenModule]) -> Callable[[WrittenModule], bool]:
    """kohya's names of the makers' code, or its own behind `transformer.`."""
    form = alike(modules)
    is_kohya, is_own = form == ("lora_unet_", KOHYA), form == ("transformer.", PEFT)
    return lambda module: is_kohya if re.match(r"(double|single)_blocks\.\d", module.name.written) else is_own


def _is_file(kinds: Mapping[str, str]) -> bool:
    return any(prefix + _MARK in kinds for prefix in PREFIXES)


def _says(part: str, names: Collection[str]) -> Config:
    """[schnell] takes no guidance scale."""
    return {"guidance_embeds": any("guidance_in." in name for name in names)} if part == "transformer" else {}


FAMILY = Family(
    name="flux1",
    title="FLUX.1",
    base_models=(
        BaseModel(
            "flux1", "flux1", "black-forest-labs/FLUX.1-dev", "FLUX.1", "Large and well known.",
            "FLUX.1 [dev] Non-Commercial License", _TERMS, is_gated=True,
        ),
        BaseModel(
            "flux1-krea", "flux1", "black-forest-labs/FLUX.1-Krea-dev", "FLUX.1 Krea",
            "FLUX.1 with a natural look.", "FLUX.1 [dev] Non-Commercial License", _TERMS, is_gated=True,
        ),
        BaseModel(
            "flux1-schnell", "flux1", "black-forest-labs/FLUX.1-schnell", "FLUX.1 schnell",
            "Draws in 4 steps; free to use.", "Apache-2.0",
        ),
    ),
    recipe={
        "rank": 32, "alpha": 32.0, "optimizer": "adamw8bit", "learning_rate": 1e-4, "resolution": 1024, "epochs": 100,
    },
    price=Price(1700, 1024),
    seconds_per_step=2.6,
    drawing=Drawing(28, 3.5, 1024),
    few_steps=Drawing(4, 0.0, 1024),
    previews=(20, 3.5),
    lora=LoraNames(
        naming=Naming(
            "transformer.", ".lora_A.weight", ".lora_B.weight", False, re.compile(ALL), "BF16", alpha=False
        ),
        form="peft",
        diffusers=diffusers_reads,
        comfyui=COMFYUI,
        is_of=_is_of,
        example={
            **{f"single_transformer_blocks.0.attn.to_{part}": _WIDTH for part in "qkv"},
            **{f"transformer_blocks.0.attn.to_{part}": _WIDTH for part in ("q", "k", "v", "out.0")},
        },
        modules=_MODULES,
        original=_ORIGINAL,
        shares=SHARES,
        words=(
            *WORDS, "img_mod", "txt_mod", "lin", "modulation", "norm1_context", "norm1", "norm", "linear", "x_embedder",
            "context_embedder",
        ),
        declared=("flux1", "flux.1", "flux-1-dev", "flux-1-schnell"),
        kind="FLUX.1",
        is_fused=True,
        architecture="flux-1-dev/lora",
        version="flux1",
    ),
    classes={
        "transformer": "diffusers.FluxTransformer2DModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.CLIPTextModel",
        "text_encoder_2": "transformers.T5EncoderModel",
        "tokenizer": "transformers.CLIPTokenizer",
        "tokenizer_2": "transformers.T5Tokenizer",
        "scheduler": "diffusers.FlowMatchEulerDiscreteScheduler",
    },
    pipeline="FluxPipeline",
    configs={
        "transformer": {"guidance_embeds": True},  # otherwise diffusers' defaults are the published model
        "vae": FLUX_AUTOENCODER,
        "text_encoder": CLIP_L,
        "text_encoder_2": T5_XXL,
        "scheduler": FLUX_SCHEDULER,
    },
    workflow=Workflow(
        unet="flux1-dev.safetensors",
        few_steps="flux1-schnell.safetensors",
        clips=("clip_l.safetensors", "t5xxl_fp16.safetensors"),
        clip_type="flux",
        vae="ae.safetensors",
        embeds_guidance=True,
    ),
    home="black-forest-labs/FLUX.1-dev",
    code="training.families.flux1",
    targets={"attention": ATTENTION, "all": ALL},
    quantised=ALL,
    shares_steps=False,
    latent_channels=16,
    caption_tokens=512,
    encoder_weight_bytes=2,
    sizes=_SIZES,
    single_file=SingleFile(
        prefixes={"transformer": PREFIXES},
        marks={"transformer": (_MARK,)},
        sources={"transformer": checkpoint_names.own_code(_WEIGHTS, SHARES)},
        is_of=_is_file,
        says=_says,
    ),
    toolkit=AiToolkit(
        arch="flux",
        precision="bf16",
        prediction="flow",
        version="flux",
        model=QUANTISED,
        train=FLOW | {"timestep_type": "sigmoid", "bypass_guidance_embedding": True},
        sample=FLOW_SAMPLE,
        prefix="transformer.",
        layers={"attention": (".attn.",), "all": (".attn.", ".ff", ".proj_mlp", ".proj_out")},
        billions=(11.9, 4.9),
        variants=(
            Variant(
                re.compile("schnell"),
                {"assistant_lora_path": "ostris/FLUX.1-schnell-training-adapter"},
                {"guidance_scale": 1.0, "sample_steps": 4},
            ),
        ),
    ),
    refused=NO_DORA,
)  # fmt: skip
