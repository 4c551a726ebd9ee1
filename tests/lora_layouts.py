"""LoRA files in the layouts that trainers and programs write, made on the spot for every family."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.families.registry import FAMILIES
from training.lora.reading import ADAPTER
from training.lora.safetensor import Tensor, pack, tensor

RANK, ALPHA = 4, 8.0
BLOCK = "transformer_blocks.0"
DOUBLE = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "to_add_out")  # of FLUX.2 and Qwen-Image
# Modules by diffusers' names, with outputs and inputs; as in `denoiser_of` of tests/training/test_lora_readers.py.
MODULES: dict[str, dict[str, tuple[int, int]]] = {
    "sd15": {
        **{f"down_blocks.0.attentions.1.{BLOCK}.attn{kind}.to_{name}": (32, 32) for kind in "12" for name in "qkv"},
        f"up_blocks.3.attentions.2.{BLOCK}.attn1.to_out.0": (32, 32),
        f"mid_block.attentions.0.{BLOCK}.ff.net.2": (32, 128),
        f"up_blocks.1.attentions.0.{BLOCK}.ff.net.0.proj": (256, 32),
    },
    "sdxl": {
        **{f"down_blocks.1.attentions.1.{BLOCK}.attn{kind}.to_{name}": (32, 32) for kind in "12" for name in "qkv"},
        f"up_blocks.0.attentions.2.{BLOCK}.attn1.to_out.0": (32, 32),
        "mid_block.attentions.0.proj_in": (32, 32),
        f"up_blocks.1.attentions.0.{BLOCK}.ff.net.0.proj": (256, 32),
    },
    "z-image": {
        **{f"layers.{number}.attention.to_{name}": (64, 64) for number in (0, 1) for name in ("q", "k", "v", "out.0")},
        "layers.1.feed_forward.w1": (170, 64),
        "layers.0.adaLN_modulation.0": (256, 64),
        "context_refiner.0.attention.to_q": (64, 64),
    },
    "flux2-klein-4b": {
        **{
            f"{BLOCK}.attn.{name}": (64, 64)
            for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "to_add_out")
        },
        f"{BLOCK}.ff.linear_in": (384, 64),
        f"{BLOCK}.ff_context.linear_out": (64, 192),
        "single_transformer_blocks.1.attn.to_qkv_mlp_proj": (576, 64),
        "single_transformer_blocks.0.attn.to_out": (64, 256),
    },
    "flux1": {
        **{f"{BLOCK}.attn.{name}": (64, 64) for name in DOUBLE},
        f"{BLOCK}.ff.net.0.proj": (256, 64),
        f"{BLOCK}.ff_context.net.2": (64, 256),
        **{f"single_transformer_blocks.1.attn.to_{name}": (64, 64) for name in "qkv"},
        "single_transformer_blocks.1.proj_mlp": (256, 64),
        "single_transformer_blocks.0.proj_out": (64, 320),
    },
    "qwen-image": {
        **{
            f"{BLOCK}.attn.{name}": (64, 64)
            for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "to_add_out")
        },
        f"{BLOCK}.img_mlp.net.0.proj": (256, 64),
        "transformer_blocks.1.txt_mlp.net.2": (64, 256),
    },
}
MODULES["qwen-image-21"] = {
    **{f"{BLOCK}.attn.{name}": (64, 64) for name in ("to_q", "to_k", "to_v", "to_out.0")},
    f"{BLOCK}.img_mlp.gate_layer": (192, 64),
    f"{BLOCK}.img_mlp.proj": (192, 64),
    "transformer_blocks.1.img_mlp.out": (64, 192),
}
MODULES["chroma"] = MODULES["flux1"]
MODULES["sd35-large"] = {
    **{f"{BLOCK}.attn.{name}": (64, 64) for name in DOUBLE},
    f"{BLOCK}.ff.net.0.proj": (256, 64),
    f"{BLOCK}.ff_context.net.2": (64, 256),
    "transformer_blocks.1.ff.net.2": (64, 256),
}
EVERY = tuple(MODULES)
UP_DOWN = (".lora_down.weight", ".lora_up.weight")
A_B = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True)
class Layout:
    """How a file names its modules, and where it has the scale."""

    stem: Callable[[str], str]
    ends: tuple[str, str] = UP_DOWN
    alpha: bool = True  # as tensors; False: in the metadata, as diffusers writes it
    families: tuple[str, ...] = EVERY


def underscored(prefix: str) -> Callable[[str], str]:
    return lambda module: prefix + module.replace(".", "_")


def dotted(prefix: str) -> Callable[[str], str]:
    return lambda module: prefix + module


def original(module: str) -> str:
    """The name in the code that the model was first trained with: for UNets with two or three layers per block."""
    if found := re.fullmatch(r"(down|up)_blocks\.(\d)\.attentions\.(\d)\.(.*)", module):
        direction, block, layer, rest = found[1], int(found[2]), int(found[3]), found[4]
        number = 3 * block + layer + (direction == "down")
        return f"{'input' if direction == 'down' else 'output'}_blocks.{number}.1.{rest}"
    return module.replace("mid_block.attentions.0.", "middle_block.1.").replace("to_out.0", "out")


def processors(module: str) -> str:
    """As diffusers named the modules of attention before it used peft."""
    return "unet." + module.replace(".to_", ".processor.to_").replace("to_out.0", "to_out")


SD = ("sd15", "sdxl")
LAYOUTS: dict[str, Layout] = {
    "kohya": Layout(underscored("lora_unet_")),
    "kohya, original names": Layout(lambda module: underscored("lora_unet_")(original(module)), families=SD),
    "lycoris": Layout(underscored("lycoris_")),
    "comfyui": Layout(dotted("diffusion_model."), A_B),
    "comfyui, up and down": Layout(dotted("diffusion_model.")),
    "comfyui, original names": Layout(lambda module: "diffusion_model." + original(module), A_B, families=SD),
    "comfyui, of peft's default adapter": Layout(
        dotted("diffusion_model."), (".lora_A.default.weight", ".lora_B.default.weight"), families=("z-image",)
    ),
    "peft": Layout(lambda module: part_of(module) + module, A_B, alpha=False),
    "peft with alphas": Layout(lambda module: part_of(module) + module, A_B),
    "peft, up and down": Layout(lambda module: part_of(module) + module),
    "bare peft": Layout(dotted("base_model.model."), A_B, alpha=False),
    "bare": Layout(dotted(""), A_B, alpha=False),
    "bare with alphas": Layout(dotted(""), A_B),
    "old processors": Layout(processors, ("_lora.down.weight", "_lora.up.weight"), alpha=False, families=SD),
    "bare, of peft's default adapter": Layout(
        dotted(""), (".lora_A.default.weight", ".lora_B.default.weight"), alpha=False, families=("z-image",)
    ),
    "peft, of its default adapter": Layout(
        lambda module: part_of(module) + module, (".lora_A.default.weight", ".lora_B.default.weight"), alpha=False
    ),
    "diffusers before peft": Layout(
        lambda module: part_of(module) + module, (".lora.down.weight", ".lora.up.weight"), alpha=False, families=SD
    ),
}
CASES = [(family, name) for name, layout in LAYOUTS.items() for family in layout.families]


def part_of(module: str) -> str:
    first = ("layers", "context_refiner", "transformer_blocks", "single_transformer_blocks")
    return "transformer." if module.split(".")[0] in first else "unet."


def matrices(module: str, shape: tuple[int, int]) -> tuple[Any, Any]:
    """Down [rank, in] and up [out, rank], from the module's name."""
    chance = np.random.default_rng(sum(map(ord, module)))
    down, up = chance.normal(size=(RANK, shape[1])), chance.normal(size=(shape[0], RANK))
    return down.astype(np.float32) / 8, up.astype(np.float32) / 8


def written(family: str, layout: str, dora: str = "", **metadata: str) -> bytes:
    """The file. dora: `output` or `input` for lengths along that axis as `.dora_scale`; `vector` as peft names them."""
    how, names = LAYOUTS[layout], FAMILIES[family].lora
    if names.kind:  # the tiny widths do not say it
        metadata.setdefault("ss_base_model_version", names.version)
    tensors: dict[str, Tensor] = {}
    for module, shape in MODULES[family].items():
        down, up = matrices(module, shape)
        stem = how.stem(module)
        tensors |= {stem + how.ends[0]: tensor(down), stem + how.ends[1]: tensor(up)}
        if how.alpha:
            tensors[f"{stem}.alpha"] = tensor(np.asarray(ALPHA, np.float32))
        if dora:
            lengths = {"output": (shape[0], 1), "input": (1, shape[1]), "vector": (shape[0],)}[dora]
            end = ".lora_magnitude_vector" if dora == "vector" else ".dora_scale"
            tensors[stem + end] = tensor(np.full(lengths, 2.0, np.float32))
    if not how.alpha:
        part = part_of(next(iter(MODULES[family]))).removesuffix(".")
        config = {f"{part}.r": RANK, f"{part}.lora_alpha": ALPHA, f"{part}.use_dora": bool(dora)}
        config |= {f"{part}.target_modules": sorted(MODULES[family])}
        metadata[ADAPTER] = json.dumps(config)
    return pack(tensors, metadata)


# Modules of Z-Image as its own code names them, and as both name them.
FUSED: dict[str, dict[str, tuple[int, int]]] = {
    "attention": {
        "layers.0.attention.qkv": (192, 64), "layers.0.attention.out": (64, 64), "layers.0.feed_forward.w1": (170, 64),
    },
    "without qkv": {"layers.0.attention.out": (64, 64), "layers.0.adaLN_modulation.0": (256, 64)},
    "embedders": {"layers.0.attention.to_q": (64, 64), "x_embedder": (64, 64), "cap_embedder.1": (64, 32)},
    "embedders of diffusers": {"layers.0.attention.to_q": (64, 64), "all_x_embedder.2-1": (64, 64)},
}  # fmt: skip
FUSED_CASES = [
    (modules, prefix, ends, alpha)
    for modules in FUSED
    for prefix in ("diffusion_model.", "transformer.", "lora_unet_", "lycoris_", "")
    for ends in (A_B, UP_DOWN, (".lora.down.weight", ".lora.up.weight"))
    for alpha in (True, False)
]


def fused(modules: str, prefix: str, ends: tuple[str, str], alpha: bool) -> bytes:
    """A file with these modules of Z-Image."""
    tensors: dict[str, Tensor] = {}
    for name, shape in FUSED[modules].items():
        stem = prefix + (name.replace(".", "_") if prefix.endswith("_") else name)
        down, up = matrices(name, shape)
        tensors |= {stem + ends[0]: tensor(down), stem + ends[1]: tensor(up)}
        if alpha:
            tensors[f"{stem}.alpha"] = tensor(np.asarray(ALPHA, np.float32))
    return pack(tensors, {})
