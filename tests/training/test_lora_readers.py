"""What `inspect` says of diffusers is what its own converters and loader do, for every family and layout."""

import json
from functools import lru_cache
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.loaders import FluxLoraLoaderMixin

from tests.families import FLOWS
from tests.lora_layouts import A_B, ALPHA, CASES, FUSED, FUSED_CASES, MODULES, RANK, fused, matrices, written
from training import families
from training.families.registry import FAMILIES
from training.lora.file import serialize_lora
from training.lora.formats import serialize_as
from training.lora.readers import readers
from training.lora.reading import ADAPTER, read_lora
from training.lora.safetensor import unpack

lib: Any = diffusers

_UNET = {"sample_size": 8, "layers_per_block": 2, "norm_num_groups": 8, "cross_attention_dim": 32}


def sd15() -> Any:
    return lib.UNet2DConditionModel(block_out_channels=(32,) * 4, attention_head_dim=2, **_UNET)


def sdxl() -> Any:
    return lib.UNet2DConditionModel(
        block_out_channels=(32,) * 3,
        attention_head_dim=2,
        transformer_layers_per_block=(1, 2, 2),
        use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        **_UNET,
    )


@lru_cache
def tiny(family: str) -> Any:
    """The tiny pipeline of a family, whose denoiser has the widths of MODULES."""
    return families.find(family).tiny("epsilon")


def denoiser_of(family: str) -> Any:
    if family in ("sd15", "sdxl"):
        return {"sd15": sd15, "sdxl": sdxl}[family]()
    made = tiny(family).transformer
    return type(made).from_config(made.config)


def load(data: bytes, family: str) -> Any:
    """The denoiser with the LoRA as diffusers loads it. Raises whatever diffusers raises."""
    mixin, denoiser = type(tiny(family)), denoiser_of(family)
    tensors, metadata = unpack(data)
    state = {name: torch.from_numpy(part.floats().copy()) for name, part in tensors.items()}
    more: dict[str, Any] = {"unet_config": denoiser.config} if family == "sdxl" else {}
    if issubclass(mixin, FluxLoraLoaderMixin):
        more = {"return_alphas": True}
    found = mixin.lora_state_dict(state, **more)
    part = FAMILIES[family].denoiser
    converted, alphas = found if isinstance(found, tuple) else (found, None)
    if not all("lora" in name for name in converted):
        raise ValueError("not a LoRA")  # as `load_lora_weights` does
    config = json.loads(metadata[ADAPTER]) if ADAPTER in metadata else None
    denoiser.load_lora_adapter(
        converted, prefix=part, adapter_name="it", metadata=config, **({"network_alphas": alphas} if alphas else {})
    )
    return denoiser


def seen(data: bytes, family: str) -> str:
    """`whole` if every layer has the change that the file holds, and `no` if none has."""
    try:
        denoiser = load(data, family)
    except (ValueError, KeyError, RuntimeError, AttributeError):
        return "no"
    right = changed = 0
    for module, shape in MODULES[family].items():
        layer = denoiser.get_submodule(module)
        down, up = matrices(module, shape)
        if hasattr(layer, "lora_A"):
            change = (layer.lora_B["it"].weight @ layer.lora_A["it"].weight) * layer.scaling["it"]
            right += np.allclose(change.detach().flatten(1).numpy(), up @ down * (ALPHA / RANK), atol=1e-5)
            changed += bool(change.any())
    if changed != right:
        return "wrongly"
    return "whole" if right == len(MODULES[family]) else "in part" if right else "no"


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_diffusers_as_it_loads(family: str, layout: str) -> None:
    data = written(family, layout)
    lora = read_lora(data)
    lora.family = family
    assert readers(lora)["diffusers"].split(" (")[0] == seen(data, family)


# Where the modules of Z-Image's own code are in diffusers' model: the layer, and which third of the matrix.
PLACES: dict[str, list[tuple[str, int | None]]] = {
    "layers.0.attention.qkv": [(f"layers.0.attention.to_{letter}", number) for number, letter in enumerate("qkv")],
    "layers.0.attention.out": [("layers.0.attention.to_out.0", None)],
    "x_embedder": [("all_x_embedder.2-1", None)],
}


def seen_of(data: bytes, modules: str) -> str:
    try:
        denoiser = load(data, "z-image")
    except (ValueError, KeyError, RuntimeError, AttributeError, IndexError):
        return f"no (0 of {len(FUSED[modules])})"
    scale = ALPHA / RANK if any(name.endswith(".alpha") for name in unpack(data)[0]) else 1.0
    read = [is_right(denoiser, name, scale, modules) for name in FUSED[modules]]
    if all(read):
        return "whole"
    return f"in part ({sum(read)} of {len(read)})" if any(read) else f"no (0 of {len(read)})"


def is_right(denoiser: Any, name: str, scale: float, modules: str) -> bool:
    """Whether the layers of a module in the file have the change that it holds."""
    down, up = matrices(name, FUSED[modules][name])
    for place, number in PLACES.get(name, [(name, None)]):
        layer = denoiser.get_submodule(place)
        if not hasattr(layer, "lora_A"):
            return False
        wanted = (up if number is None else np.split(up, 3)[number]) @ down * scale
        change = (layer.lora_B["it"].weight @ layer.lora_A["it"].weight) * layer.scaling["it"]
        if not np.allclose(change.detach().numpy(), wanted, atol=1e-5):
            return False
    return True


@pytest.mark.parametrize(("modules", "prefix", "ends", "alpha"), FUSED_CASES)
def test_names_of_z_images_own_code(modules: str, prefix: str, ends: tuple[str, str], alpha: bool) -> None:
    data = fused(modules, prefix, ends, alpha)
    assert readers(read_lora(data))["diffusers"] == seen_of(data, modules)


@pytest.mark.parametrize("modules", FUSED)
@pytest.mark.parametrize("to", ["peft", "comfyui"])
def test_they_are_whole_after_a_conversion(modules: str, to: str) -> None:
    data = serialize_as(read_lora(fused(modules, "diffusion_model.", A_B, True)), to)
    denoiser = load(data, "z-image")
    for name in FUSED[modules]:
        assert is_right(denoiser, name, ALPHA / RANK, modules), name
    found = readers(read_lora(data))
    assert (found["diffusers"], found["ComfyUI"]) == ("whole", "whole" if to == "comfyui" else "without its scale")


@pytest.mark.parametrize("family", [name for name in FLOWS if name not in ("z-image", "flux1", "chroma")])
@pytest.mark.parametrize("to", ["kohya", "comfyui", "peft"])
def test_every_form_of_a_transformer_is_read_as_its_record_says(family: str, to: str) -> None:
    """kohya's and ComfyUI's forms of FLUX.2 have the names of its own code: query, key and value are one layer.

    diffusers does not know those of Stable Diffusion 3.5.
    """
    lora = read_lora(written(family, "peft with alphas"))
    lora.family = family
    data = serialize_as(lora, to)
    again = read_lora(data)
    again.family = family
    assert readers(again)["diffusers"].split(" (")[0] == seen(data, family)
    assert readers(again)["ComfyUI"] == "whole"
    again.other_family, again.problems = None, []
    assert seen(serialize_as(again, "peft"), family) == "whole"


@pytest.mark.parametrize("family", ["flux1", "chroma"])
def test_kohyas_form_of_flux1_is_read_whole_by_diffusers(family: str) -> None:
    """Its converter knows only the published widths, so one block of each kind has them."""
    shapes = {
        "transformer_blocks.0.attn.to_q": (3072, 3072), "transformer_blocks.0.attn.add_v_proj": (3072, 3072),
        "transformer_blocks.0.ff.net.0.proj": (12288, 3072), "transformer_blocks.0.ff_context.net.2": (3072, 12288),
        "single_transformer_blocks.0.attn.to_k": (3072, 3072), "single_transformer_blocks.0.proj_mlp": (12288, 3072),
        "single_transformer_blocks.0.proj_out": (3072, 15360),
    }  # fmt: skip
    pairs = {module: matrices(module, shape) for module, shape in shapes.items()}
    data = serialize_lora(family, pairs, ALPHA, {"imprint_family": family})
    written = serialize_as(read_lora(data), "kohya")
    state = {name: torch.from_numpy(part.floats().copy()) for name, part in unpack(written)[0].items()}
    assert "lora_unet_single_blocks_0_linear1.alpha" in state
    found = FluxLoraLoaderMixin.lora_state_dict(state)
    for module, (down, up) in pairs.items():
        probe = torch.ones(down.shape[1])
        a, b = (found[f"transformer.{module}.lora_{letter}.weight"].float() for letter in "AB")
        wanted = torch.from_numpy(up @ (down @ probe.numpy())) * (ALPHA / RANK)
        assert (b @ (a @ probe) - wanted).norm() < 2e-2 * wanted.norm(), module
    assert readers(read_lora(written)) == {"diffusers": "whole", "ComfyUI": "whole", "AUTOMATIC1111": "no (0 of 6)"}
    again = unpack(serialize_as(read_lora(written), "peft"))[0]
    assert {f"transformer.{module}.lora_B.weight" for module in shapes} <= set(again)


@pytest.mark.parametrize(("layout", "dora"), [("kohya", "output"), ("kohya", "input"), ("peft", "vector")])
def test_lengths_of_a_dora(layout: str, dora: str) -> None:
    data = written("sd15", layout, dora)
    denoiser = load(data, "sd15")
    has_lengths = any("lora_magnitude_vector" in name for name, _ in denoiser.named_parameters())
    assert readers(read_lora(data))["diffusers"] == ("whole" if has_lengths else "without its magnitudes")
