"""ai-toolkit's files become ours with the same numbers and the same scale, or are refused for what they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import LoraInvalid
from fakes.ai_toolkit.modules import modules_of
from training.backends.ai_toolkit.convert import _modules, convert_lora
from training.families.registry import BASE_MODELS, FAMILIES, trained_here
from training.lora import file as lora_file
from training.lora.formats import serialize_as
from training.lora.inspect import inspect
from training.lora.reading import read_lora
from training.lora.safetensor import Array, Tensor, pack, tensor, unpack
from training.ports import Example
from training.spec import TrainSpec

MODULES = {
    "sd15": "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn2_to_out_0",
    "sdxl": "lora_unet_down_blocks_1_attentions_1_transformer_blocks_1_attn1_to_v",
    "z-image": "diffusion_model.layers.29.attention.to_out.0",
}
# Their own code fuses query, key and value.
FUSED = "diffusion_model.double_blocks.4.img_attn.qkv"
BASES = {"sd15": "sd15", "sdxl": "sdxl", "z-image": "z-image-turbo"}
EXAMPLES = [Example(Path("1.png"), "sks dog, outside", "a" * 64, 64, 64)]


def spec(family: str, **more: Any) -> TrainSpec:
    alphas = {"sd15": 32.0, "sdxl": 2.5, "z-image": 4.0}
    given = {"rank": 4, "alpha": alphas[family], "seed": 3, "max_steps": 9, "backend": "ai-toolkit", **more}
    return TrainSpec(base_model=BASES[family], trigger_word="sks dog", **given)


def theirs(family: str, kind: str, **changed: Tensor | None) -> dict[str, Tensor]:
    """A file as ai-toolkit writes it, one module. `changed`: tensors by their suffix with _ for ., None: left out."""
    chance = np.random.default_rng(1)
    down, up = chance.normal(size=(4, 24)).astype(np.float32), chance.normal(size=(40, 4)).astype(np.float32)
    ends = (".lora_A.weight", ".lora_B.weight") if family == "z-image" else (".lora_down.weight", ".lora_up.weight")
    made = {MODULES[family] + ends[0]: tensor(down, kind), MODULES[family] + ends[1]: tensor(up, kind)}
    if family != "z-image":
        made[MODULES[family] + ".alpha"] = tensor(np.asarray(spec(family).alpha), kind)
    for end, value in changed.items():
        name = MODULES[family] + end.replace("_weight", ".weight").replace("_lora", ".lora").replace("_alpha", ".alpha")
        if value is None:
            del made[name]
        else:
            made[name] = value
    return made


def written(path: Path, tensors: dict[str, Tensor]) -> Path:
    path.write_bytes(pack(tensors, {"name": "x", "sshs_model_hash": "0" * 64}))
    return path


def product(tensors: dict[str, Tensor], stem: str, ends: tuple[str, str]) -> Array:
    """What the LoRA adds to a module's weight: alpha / rank x up x down; peft's form without alpha has scale 1."""
    down, up = (tensors[stem + end].floats().astype(np.float64) for end in ends)
    alpha = tensors.get(f"{stem}.alpha")
    return (float(alpha.floats()) / len(down) if alpha is not None else 1.0) * (up @ down)


@pytest.mark.parametrize(("family", "kind"), [("sd15", "F32"), ("sdxl", "F16"), ("z-image", "BF16"), ("sd15", "BF16")])
def test_the_same_delta_under_our_names(family: str, kind: str, tmp_path: Path) -> None:
    tensors = theirs(family, kind)
    source = written(tmp_path / "theirs.safetensors", tensors)
    report = convert_lora(
        source, tmp_path / "ours.safetensors", spec(family), EXAMPLES, dataset_sha256="d" * 64, base_model="me/base"
    )
    data = (tmp_path / "ours.safetensors").read_bytes()
    assert report == lora_file.check_lora_file(data, family=family, rank=4)
    assert report.alpha == spec(family).alpha
    ours, metadata = unpack(data)
    naming = lora_file.naming_of(family)
    wanted = product(tensors, MODULES[family], (naming.down, naming.up))
    got = product(ours, MODULES[family], (naming.down, naming.up))
    assert np.array_equal(wanted, got)  # to the bit: ours is never narrower than what was ordered
    assert ours[MODULES[family] + naming.down].kind == naming.kind
    assert metadata["imprint_backend"] == "ai-toolkit"
    assert metadata["ss_sd_model_name"] == "me/base"
    assert metadata["imprint_trigger_word"] == "sks dog"
    assert metadata["imprint_dataset_sha256"] == "d" * 64
    assert metadata["ss_steps"] == "9"
    assert metadata["ss_network_alpha"] == repr(spec(family).alpha)


def test_an_alpha_that_the_files_precision_rounds_is_written_in_full(tmp_path: Path) -> None:
    ordered = spec("sdxl", alpha=0.1)
    tensors = theirs("sdxl", "F16", _alpha=tensor(np.asarray(0.1), "F16"))
    out = tmp_path / "ours.safetensors"
    assert convert_lora(
        written(tmp_path / "a", tensors), out, ordered, EXAMPLES, dataset_sha256="d" * 64
    ).alpha == pytest.approx(0.1, rel=1e-7)


REFUSALS: list[tuple[str, str, dict[str, Any], str]] = [
    ("text encoder", "sd15", {"_strange": tensor(np.zeros(1))}, "which no sd15 LoRA has"),
    ("no alpha", "sd15", {"_alpha": None}, "lacks"),
    ("another alpha", "sd15", {"_alpha": tensor(np.asarray(4.0))}, "was trained with alpha 4 "),
    ("no up", "sdxl", {"_lora_up_weight": None}, "lacks"),
    ("another rank", "sd15", {"_lora_down_weight": tensor(np.ones((8, 24)))}, "has rank 8 and 4"),
    ("not finite", "z-image", {"_lora_A_weight": tensor(np.full((4, 24), np.nan))}, "not finite"),
    ("too large for its kind", "sdxl", {"_lora_up_weight": tensor(np.full((40, 4), 1e30))}, "not finite"),
    ("an alpha where there is none", "z-image", {"_alpha": tensor(np.asarray(32.0))}, "alpha 32 "),
]


@pytest.mark.parametrize(("family", "changed", "why"), [case[1:] for case in REFUSALS], ids=[c[0] for c in REFUSALS])
def test_refused(family: str, changed: dict[str, Any], why: str, tmp_path: Path) -> None:
    source = written(tmp_path / "theirs", theirs(family, lora_file.naming_of(family).kind, **changed))
    with pytest.raises(LoraInvalid, match=why):
        convert_lora(source, tmp_path / "ours", spec(family), EXAMPLES, dataset_sha256="d" * 64)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("harm", [lambda data: data[: len(data) // 2], lambda data: b"PK" + data, lambda _: b""])
def test_no_safetensors(harm: Callable[[bytes], bytes], tmp_path: Path) -> None:
    source = written(tmp_path / "theirs", theirs("sd15", "F32"))
    source.write_bytes(harm(source.read_bytes()))
    with pytest.raises(LoraInvalid, match="is damaged"):
        convert_lora(source, tmp_path / "ours", spec("sd15"), EXAMPLES, dataset_sha256="d" * 64)
    with pytest.raises(LoraInvalid, match="cannot be read"):
        convert_lora(tmp_path / "nothing", tmp_path / "ours", spec("sd15"), EXAMPLES, dataset_sha256="d" * 64)


def test_a_fused_layer_of_flux2_becomes_three_of_diffusers(tmp_path: Path) -> None:
    chance = np.random.default_rng(3)
    down, up = chance.normal(size=(4, 24)).astype(np.float32), chance.normal(size=(36, 4)).astype(np.float32)
    tensors = {f"{FUSED}.lora_A.weight": tensor(down, "BF16"), f"{FUSED}.lora_B.weight": tensor(up, "BF16")}
    asked = TrainSpec(base_model="me/klein", family="flux2-klein-4b", trigger_word="sks", rank=4, alpha=4.0, seed=1)
    source, out = written(tmp_path / "theirs.safetensors", tensors), tmp_path / "ours.safetensors"
    report = convert_lora(source, out, asked, EXAMPLES, dataset_sha256="d" * 64, base_model="me/klein")
    assert report.modules == 3
    ours, _ = unpack(out.read_bytes())
    stems = [f"transformer.transformer_blocks.4.attn.to_{part}" for part in "qkv"]
    assert set(ours) == {stem + end for stem in stems for end in (".lora_A.weight", ".lora_B.weight")}
    got = np.concatenate([product(ours, stem, (".lora_A.weight", ".lora_B.weight")) for stem in stems])
    assert np.array_equal(got, product(tensors, FUSED, (".lora_A.weight", ".lora_B.weight")))


def test_a_fused_layer_of_unequal_parts_becomes_those_of_diffusers(tmp_path: Path) -> None:
    """Query, key, value and the four times wider input of the feed-forward layer of Chroma's single blocks."""
    stem, chance = "diffusion_model.single_blocks.7.linear1", np.random.default_rng(3)
    down, up = chance.normal(size=(4, 24)).astype(np.float32), chance.normal(size=(70, 4)).astype(np.float32)
    tensors = {f"{stem}.lora_A.weight": tensor(down, "BF16"), f"{stem}.lora_B.weight": tensor(up, "BF16")}
    asked = TrainSpec(base_model="me/chroma", family="chroma", trigger_word="sks", rank=4, alpha=4.0, seed=1)
    source, out = written(tmp_path / "theirs.safetensors", tensors), tmp_path / "ours.safetensors"
    convert_lora(source, out, asked, EXAMPLES, dataset_sha256="d" * 64, base_model="me/chroma")
    ours, _ = unpack(out.read_bytes())
    block = "transformer.single_transformer_blocks.7."
    shapes = {f"{block}attn.to_{part}": (10, 4) for part in "qkv"} | {f"{block}proj_mlp": (40, 4)}
    assert {name: ours[f"{name}.lora_B.weight"].shape for name in shapes} == shapes
    got = np.concatenate([product(ours, name, (".lora_A.weight", ".lora_B.weight")) for name in shapes])
    assert np.array_equal(got, product(tensors, stem, (".lora_A.weight", ".lora_B.weight")))


def test_a_family_that_only_the_server_trains_keeps_its_names(tmp_path: Path) -> None:
    stem = "diffusion_model.blocks.3.attn.wq"
    tensors = {
        f"{stem}.lora_A.weight": tensor(np.ones((4, 8)), "BF16"),
        f"{stem}.lora_B.weight": tensor(np.ones((8, 4)), "BF16"),
    }
    asked = TrainSpec(base_model="krea2", trigger_word="sks", rank=4, alpha=4.0, seed=1)
    source, out = written(tmp_path / "theirs.safetensors", tensors), tmp_path / "ours.safetensors"
    convert_lora(source, out, asked, EXAMPLES, dataset_sha256="d" * 64, base_model="krea/Krea-2-Raw")
    assert set(unpack(out.read_bytes())[0]) == set(tensors)
    seen = inspect(out)
    assert (seen.family, seen.verdict, seen.modules, seen.readers, seen.warnings) == ("krea2", "sound", 1, {}, [])
    assert serialize_as(read_lora(out), "comfyui")
    with pytest.raises(LoraInvalid, match="leave the file as it is"):
        serialize_as(read_lora(out), "peft")
    strange = {name.replace("blocks.3", "final.0"): held for name, held in tensors.items()}
    with pytest.raises(LoraInvalid, match="which no krea2 LoRA has"):
        convert_lora(written(source, strange), out, asked, EXAMPLES, dataset_sha256="d" * 64)


@pytest.mark.parametrize(
    ("family", "targets", "count"), [("sd15", "attention", 128), ("sd15", "all", 192), ("z-image", "attention", 210)]
)
def test_a_file_with_fewer_layers_than_the_family_has_is_refused(
    family: str, targets: str, count: int, tmp_path: Path
) -> None:
    source, out = written(tmp_path / "theirs.safetensors", theirs(family, "F32")), tmp_path / "ours.safetensors"
    asked = spec(family, adapter={"targets": targets})
    known = BASE_MODELS[BASES[family]].location
    with pytest.raises(LoraInvalid, match=f"has 1 modules; a {family} LoRA with its targets has {count}"):
        convert_lora(source, out, asked, EXAMPLES, dataset_sha256="d" * 64, base_model=known)


@pytest.mark.parametrize("name", [name for name in trained_here() if FAMILIES[name].toolkit is not None])
@pytest.mark.parametrize("targets", ["attention", "all"])
def test_the_stand_in_server_trains_as_many_layers_as_the_family_has(name: str, targets: str) -> None:
    family = FAMILIES[name]
    assert family.toolkit is not None
    layers = None if family.toolkit.layers is None else family.toolkit.layers[targets]
    found = modules_of(name, {"network_kwargs": {"only_if_contains": layers}})
    counted = sum(len(_modules(module, name)) for module in found)
    assert counted == (family.toolkit.modules if family.sizes is None else family.sizes.modules[targets])
    if family.sizes is not None:  # and with as many parameters
        parts = [(len(_modules(module, name)), inputs, outputs) for module, (inputs, outputs) in found.items()]
        assert sum(count * inputs + outputs for count, inputs, outputs in parts) == family.sizes.lora[targets]
