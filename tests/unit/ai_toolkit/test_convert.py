"""ai-toolkit's files become ours with the same numbers and the same scale, or are refused for what they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import LoraInvalid
from training.backends.ai_toolkit.convert import convert_lora
from training.lora import file as lora_file
from training.lora.safetensor import Array, Tensor, pack, tensor, unpack
from training.ports import Example
from training.spec import TrainSpec

MODULES = {
    "sd15": "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn2_to_out_0",
    "sdxl": "lora_unet_down_blocks_1_attentions_1_transformer_blocks_1_attn1_to_v",
    "z-image": "diffusion_model.layers.29.attention.to_out.0",
}
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
