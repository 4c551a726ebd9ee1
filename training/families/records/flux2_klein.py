"""The records of FLUX.2 [klein] base in its two sizes. Files for one size do not fit the other, so each is a family."""

import re
from collections.abc import Callable, Mapping, Sequence
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
    WrittenModule,
)
from training.families.records.encoder_configs import FLUX_SCHEDULER, QWEN3_4B, QWEN3_8B, autoencoder
from training.families.records.lora_files import KOHYA, NO_DORA, PEFT, alike, of_own_code
from training.families.records.toolkit import FLOW, FLOW_SAMPLE, QUANTISED
from training.families.weights import checkpoint_names

_ATTENTION = (
    r"transformer_blocks\.\d+\.attn\.(to_(q|k|v|out\.0)|add_(q|k|v)_proj|to_add_out)|"
    r"single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
)
_ALL = _ATTENTION + r"|transformer_blocks\.\d+\.ff(_context)?\.linear_(in|out)"
_MODULES = re.compile(
    _ALL + r"|x_embedder|context_embedder|proj_out|norm_out\.linear|"
    r"(double_stream_modulation_(img|txt)|single_stream_modulation)\.linear|"
    r"time_guidance_embed\.(timestep|guidance)_embedder\.linear_[12]"
)
_DOUBLE = r"double_blocks\.(\d+)\."
_MARK = "single_stream_modulation.lin.weight"
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
# The names of the makers' own code, which ai-toolkit and ComfyUI use. The single blocks are fused in diffusers too.
_ORIGINAL: tuple[tuple[str, tuple[str, ...]], ...] = (
    (_DOUBLE + r"img_attn\.qkv", tuple(rf"transformer_blocks.\1.attn.to_{part}" for part in "qkv")),
    (_DOUBLE + r"txt_attn\.qkv", tuple(rf"transformer_blocks.\1.attn.add_{part}_proj" for part in "qkv")),
    (_DOUBLE + r"img_attn\.proj", (r"transformer_blocks.\1.attn.to_out.0",)),
    (_DOUBLE + r"txt_attn\.proj", (r"transformer_blocks.\1.attn.to_add_out",)),
    (_DOUBLE + r"img_mlp\.0", (r"transformer_blocks.\1.ff.linear_in",)),
    (_DOUBLE + r"img_mlp\.2", (r"transformer_blocks.\1.ff.linear_out",)),
    (_DOUBLE + r"txt_mlp\.0", (r"transformer_blocks.\1.ff_context.linear_in",)),
    (_DOUBLE + r"txt_mlp\.2", (r"transformer_blocks.\1.ff_context.linear_out",)),
    (r"single_blocks\.(\d+)\.linear1", (r"single_transformer_blocks.\1.attn.to_qkv_mlp_proj",)),
    (r"single_blocks\.(\d+)\.linear2", (r"single_transformer_blocks.\1.attn.to_out",)),
)  # fmt: skip
_WEIGHTS = (
    *_ORIGINAL, *checkpoint_names.FLUX, *checkpoint_names.embedder("time_in", "time_guidance_embed.timestep_embedder"),
    *(
        (rf"{kind}_stream_modulation{stream}\.lin", (f"{kind}_stream_modulation{stream}.linear",))
        for kind, stream in (("double", "_img"), ("double", "_txt"), ("single", ""))
    ),
)  # fmt: skip
# The layers that ComfyUI's key map has, of the makers' code and by `flux_to_diffusers`, which has neither the
# modulations nor the embedding of times.
_OWN = (
    r"double_blocks\.\d+\.(img|txt)_(attn\.(qkv|proj|norm\.(query|key)_norm)|mlp\.[02])|"
    r"single_blocks\.\d+\.(linear[12]|norm\.(query|key)_norm)|img_in|txt_in|time_in\.(in|out)_layer|"
    r"final_layer\.(linear|adaLN_modulation\.1)|(double_stream_modulation_(img|txt)|single_stream_modulation)\.lin"
)
_MAPPED = (
    r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out|norm_(added_)?[qk])|"
    r"ff(_context)?\.linear_(in|out))|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out|norm_[qk])|"
    r"x_embedder|context_embedder|proj_out"
)
_WORDS = (
    "double_blocks", "single_blocks", "img_attn", "txt_attn", "img_mlp", "txt_mlp", "qkv", "linear1", "linear2", "attn",
    "single_transformer_blocks", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "to_qkv_mlp_proj",
    "ff_context", "linear_in", "linear_out", "x_embedder", "context_embedder", "img_in", "txt_in",
)  # fmt: skip


_SIZES_4B = Sizes(
    parameters=3875544576,
    quantised=(3680501760, 84934656),
    encoders=8044936192,
    lora={"attention": 1167360, "all": 1505280},
    modules={"attention": 80, "all": 100},
    sample=(1964710912, 3818208),
    checkpointed=(214713344, 400688),
)
_SIZES_9B = Sizes(
    parameters=9078581248,
    quantised=(8724152320, 150994944),
    encoders=15136811008,
    lora={"attention": 1998848, "all": 2719744},
    modules={"attention": 112, "all": 144},
    sample=(3308160000, 6428592),
    checkpointed=(319005696, 591248),
)


def _is_of(width: int, doubles: int, singles: int) -> Callable[[Mapping[str, int]], bool]:
    """FLUX.1 and the other sizes have the same names: widths and the numbers of blocks tell them apart."""

    def is_of(inputs: Mapping[str, int]) -> bool:
        names = {name.removeprefix("transformer."): count for name, count in inputs.items()}
        if not any(re.search(r"to_qkv_mlp_proj|linear_(in|out)|double_blocks", name) for name in names):
            return False
        for name, count in names.items():
            found = re.match(r"(single_)?(?:transformer_blocks|double_blocks)\.(\d+)\.(.+)", name)
            if found is None or (not _MODULES.fullmatch(name) and not name.endswith(".qkv")):
                return False
            wanted = {"attn.to_out": 4 * width, "ff.linear_out": 3 * width, "ff_context.linear_out": 3 * width}
            if count != wanted.get(found[3], width) or int(found[2]) >= (singles if found[1] else doubles):
                return False
        return True

    return is_of


def _diffusers(modules: Sequence[WrittenModule]) -> Callable[[WrittenModule], bool]:
    """It fails on a file with an alpha beside peft's matrices."""
    prefix, suffix = alike(modules)
    own = re.compile(r"(double|single)_blocks\.\d+\..*")
    if prefix == "lora_unet_":
        return lambda module: suffix == KOHYA and bool(own.fullmatch(module.name.written))
    is_named = prefix == "diffusion_model."  # under its own prefix the makers' names are read too
    fits = is_named and suffix in (PEFT, KOHYA)
    fits = fits or (prefix in ("transformer.", "base_model.model.") and suffix == PEFT)
    fits = fits and not any(module.has_alpha for module in modules)
    return lambda module: fits and (is_named or not own.fullmatch(module.name.written))


def _is_file(doubles: range, singles: int) -> Callable[[Mapping[str, str]], bool]:
    """Whether a file is a FLUX.2 with so many double blocks, and at most so many single ones."""

    def is_file(kinds: Mapping[str, str]) -> bool:
        prefix = next((prefix for prefix in _PREFIXES if prefix + _MARK in kinds), None)
        if prefix is None:
            return False
        found = [re.match(r"(double|single)_blocks\.(\d+)\.", name.removeprefix(prefix)) for name in kinds]
        count = {kind: {one[2] for one in found if one and one[1] == kind} for kind in ("double", "single")}
        return len(count["double"]) in doubles and len(count["single"]) <= singles

    return is_file


def _lora_names(size: str, width: int, doubles: int, singles: int) -> LoraNames:
    name = f"flux2-klein-{size.lower()}"
    return LoraNames(
        naming=Naming("transformer.", ".lora_A.weight", ".lora_B.weight", False, re.compile(_ALL), "BF16", alpha=False),
        form="peft",
        diffusers=_diffusers,
        comfyui=re.compile(of_own_code(_OWN, _MAPPED)),
        is_of=_is_of(width, doubles, singles),
        example={
            "single_transformer_blocks.0.attn.to_qkv_mlp_proj": width,
            **{f"transformer_blocks.0.attn.to_{part}": width for part in ("q", "k", "v", "out.0")},
        },
        modules=_MODULES,
        original=_ORIGINAL,
        words=_WORDS,
        declared=(
            name,
            f"flux2_klein_{size.lower()}",
            f"flux-2-klein-{size.lower()}",
            f"klein-base-{size.lower()}",
        ),
        kind="FLUX.2",
        is_fused=True,
        architecture=f"{name}/lora",
        version=f"flux2_klein_{size.lower()}",
    )


def _configs(encoder: Mapping[str, Any], heads: int, doubles: int, singles: int) -> dict[str, Mapping[str, Any]]:
    return {
        "transformer": {
            "num_layers": doubles,
            "num_single_layers": singles,
            "num_attention_heads": heads,
            "joint_attention_dim": 3 * int(encoder["hidden_size"]),
            "guidance_embeds": False,
        },
        "vae": autoencoder(32),
        "text_encoder": dict(encoder),
        "scheduler": FLUX_SCHEDULER,
    }


def _toolkit(size: str, billions: tuple[float, float]) -> AiToolkit:
    return AiToolkit(
        arch=f"flux2_klein_{size.lower()}",
        precision="bf16",
        prediction="flow",
        version=f"flux2_klein_{size.lower()}",
        model=QUANTISED | {"low_vram": True, "model_kwargs": {"match_target_res": False}},
        train=FLOW | {"timestep_type": "weighted"},
        sample=FLOW_SAMPLE,
        layers={
            "attention": ("img_attn", "txt_attn", "linear1", "linear2"),
            "all": ("double_blocks", "single_blocks"),
        },
        billions=billions,
    )


def _klein(
    size: str, encoder: Mapping[str, Any], width: int, doubles: int, singles: int, fewest: int,
    billions: tuple[float, float], **more: Any,
) -> Family:  # fmt: skip
    name, heads = f"flux2-klein-{size.lower()}", width // 128
    return Family(
        name=name,
        title=f"FLUX.2 [klein] {size}",
        recipe={"rank": 32, "alpha": 32.0, "learning_rate": 1e-4, "resolution": 1024, "epochs": 100},
        drawing=Drawing(50, 4.0, 1024),
        previews=(28, 4.0),
        lora=_lora_names(size, width, doubles, singles),
        classes={
            "transformer": "diffusers.Flux2Transformer2DModel",
            "vae": "diffusers.AutoencoderKLFlux2",
            "text_encoder": "transformers.Qwen3ForCausalLM",
            "tokenizer": "transformers.Qwen2Tokenizer",
            "scheduler": "diffusers.FlowMatchEulerDiscreteScheduler",
        },
        pipeline="Flux2KleinPipeline",
        configs=_configs(encoder, heads, doubles, singles),
        home=f"black-forest-labs/FLUX.2-klein-base-{size}",
        code="training.families.flux2_klein",
        targets={"attention": _ATTENTION, "all": _ALL},
        quantised=_ALL,
        shares_steps=False,
        latent_channels=128,
        latent_pixels=16,
        caption_tokens=512,
        encoder_weight_bytes=2,
        single_file=SingleFile(
            prefixes={"transformer": _PREFIXES},
            marks={"transformer": (_MARK,)},
            sources={"transformer": checkpoint_names.own_code(_WEIGHTS)},
            is_of=_is_file(range(fewest, doubles + 1), singles),
        ),
        toolkit=_toolkit(size, billions),
        refused=NO_DORA
        | {
            "objective.noise_offset": "the patches of FLUX.2 have no channel that is the brightness",
        },
        **more,
    )


KLEIN_4B = _klein(
    "4B",
    QWEN3_4B,
    3072,
    5,
    20,
    1,
    (3.9, 4.0),
    base_models=(
        BaseModel(
            "flux2-klein-4b", "flux2-klein-4b", "black-forest-labs/FLUX.2-klein-base-4B", "FLUX.2 [klein] 4B base",
            "Small and modern: LoRAs also work on the few-step model.", "Apache-2.0",
        ),
    ),
    price=Price(700, 1024),
    seconds_per_step=1.0,
    sizes=_SIZES_4B,
)  # fmt: skip
KLEIN_9B = _klein(
    "9B",
    QWEN3_8B,
    4096,
    8,
    24,
    6,
    (9.1, 8.2),
    base_models=(
        BaseModel(
            "flux2-klein-9b", "flux2-klein-9b", "black-forest-labs/FLUX.2-klein-base-9B", "FLUX.2 [klein] 9B base",
            "Larger: for cards with 24 GB.", "FLUX Non-Commercial License", "not for commercial use", is_gated=True,
        ),
    ),
    price=Price(1500, 1024),
    seconds_per_step=2.2,
    sizes=_SIZES_9B,
)  # fmt: skip
