"""What `inspect` says of ComfyUI is what its key maps do with a file, for every family and layout."""

import numpy as np
import pytest

from fakes.comfyui.loras import match
from tests.lora_layouts import CASES, FUSED, FUSED_CASES, MODULES, fused, written
from training.families.registry import FAMILIES
from training.lora.inspect import inspect
from training.lora.readers import readers
from training.lora.reading import read_lora
from training.lora.safetensor import pack, tensor, unpack


def comfyui(data: bytes, family: str) -> str:
    """How much of a file the recorded key map takes."""
    keys = list(unpack(data)[0])
    lora = read_lora(data)
    used, missed = match(keys, family)
    stems = {module.stem for module in lora.modules.values()}
    if not used:
        return f"no (0 of {len(stems)})"
    read = [module for module in lora.modules.values() if module.stem in used]
    dora = [module for module in read if module.magnitude is not None]
    words = []
    if any(f"{module.stem}.alpha" not in keys and module.scale != 1 for module in read):
        words.append("without its scale")  # it takes the alpha from the tensors alone
    if any(module.stem + module.magnitude_suffix in missed for module in dora):
        words.append("without its magnitudes")
    elif any(module.axis == "output" for module in dora):
        words.append("close")
    word = ", ".join(words)
    if len(used) < len(stems):
        return f"in part ({len(used)} of {len(stems)})" + f", {word}" * bool(word)
    return word or "whole"


@pytest.mark.parametrize("dora", ["", "output", "input", "vector"])
@pytest.mark.parametrize(("family", "layout"), CASES)
def test_comfyui_as_its_key_maps_have_it(family: str, layout: str, dora: str) -> None:
    data = written(family, layout, dora)
    lora = read_lora(data)
    assert set(lora.modules) == {f"{part}.{module}" for part, module in parts(family)}
    lora.family = family  # some layouts say nothing of it but by their names, which are those of a few modules here
    assert readers(lora)["ComfyUI"] == comfyui(data, family)


def parts(family: str) -> list[tuple[str, str]]:
    return [(FAMILIES[family].denoiser, module) for module in MODULES[family]]


@pytest.mark.parametrize(("modules", "prefix", "ends", "alpha"), FUSED_CASES)
def test_names_of_z_images_own_code(modules: str, prefix: str, ends: tuple[str, str], alpha: bool) -> None:
    data = fused(modules, prefix, ends, alpha)
    assert len(read_lora(data).modules) == len(FUSED[modules])
    assert readers(read_lora(data))["ComfyUI"] == comfyui(data, "z-image")


@pytest.mark.parametrize(("family", "stem"), [
    ("sd15", "lora_te_{}"), ("sd15", "lora_te1_{}"), ("sdxl", "lora_te1_{}"), ("sdxl", "lora_te2_{}"),
    ("sd15", "lora_te2_{}"), ("sdxl", "text_encoder_2.{}"), ("sd15", "text_encoder.{}"),
])  # fmt: skip
def test_text_encoders(family: str, stem: str) -> None:
    tensors, _ = unpack(written(family, "kohya"))
    for module in ("text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.1.mlp.fc1"):
        name = stem.format(module.replace(".", "_") if stem.endswith("_{}") else module)
        for end, shape in (("down", (4, 8)), ("up", (8, 4))):
            tensors[f"{name}.lora_{end}.weight"] = tensor(np.ones(shape))
    lora = read_lora(pack(tensors, {}))
    lora.family = family
    assert len(lora.modules) == 11
    assert readers(lora)["ComfyUI"] == comfyui(pack(tensors, {}), family)


# How it was in the programs themselves, on files in these layouts.
SEEN = {
    ("z-image", "kohya", ""): {"diffusers": "whole", "ComfyUI": "in part (2 of 11)"},
    ("z-image", "peft, up and down", ""): {"diffusers": "no (0 of 11)", "ComfyUI": "whole"},
    ("z-image", "lycoris", ""): {"diffusers": "no (0 of 11)", "ComfyUI": "whole"},
    ("z-image", "comfyui", ""): {"diffusers": "whole", "ComfyUI": "whole", "AUTOMATIC1111": "no (0 of 11)"},
    ("sd15", "kohya", ""): {"diffusers": "whole", "ComfyUI": "whole", "AUTOMATIC1111": "whole"},
    ("sd15", "peft", ""): {"diffusers": "whole", "ComfyUI": "in part (2 of 9), without its scale",
                           "AUTOMATIC1111": "no (0 of 9)"},
    ("z-image", "peft", ""): {"diffusers": "whole", "ComfyUI": "without its scale"},
    ("sd15", "kohya", "output"): {
        "diffusers": "without its magnitudes", "ComfyUI": "close", "AUTOMATIC1111": "wrongly",
    },
    ("sd15", "kohya", "input"): {
        "diffusers": "without its magnitudes", "ComfyUI": "whole", "AUTOMATIC1111": "whole",
    },
    ("sdxl", "peft", "vector"): {"diffusers": "whole",
                                 "ComfyUI": "in part (2 of 9), without its scale, without its magnitudes"},
}  # fmt: skip


@pytest.mark.parametrize("case", SEEN, ids=", ".join)
def test_what_was_seen(case: tuple[str, str, str]) -> None:
    found = inspect(written(*case)).readers
    assert {name: found[name] for name in SEEN[case]} == SEEN[case]


def test_an_attention_only_peft_file_loads_nothing_in_comfyui() -> None:
    data = written("sd15", "peft")
    tensors = {key: part for key, part in unpack(data)[0].items() if ".attn" in key}
    report = inspect(pack(tensors, {}))
    assert report.readers["ComfyUI"] == "no (0 of 7)"
    assert any("convert the file to kohya" in warning for warning in report.warnings)
