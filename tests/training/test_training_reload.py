"""A LoRA file says the same when diffusers reads it back as the live model said: scale, keys, every layer."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from core.errors import LoraInvalid
from tests.families import LOCAL
from tests.training.live import Live
from tests.training.test_training_families import full_size
from training import families, sample
from training.backends.local import train
from training.engine.objective import errors
from training.families.family import Where
from training.families.registry import FAMILIES
from training.lora import file as lora_file
from training.lora.formats import serialize_as
from training.lora.inspect import inspect
from training.lora.reading import read_lora
from training.lora.safetensor import unpack
from training.ports import TrainRun

Runs = Callable[..., TrainRun]
# float32 files come back exactly; the rounding of 16-bit ones is a part in 2,000 (float16) or 256 (bfloat16) of the
# LoRA.
TOLERANCE = {"F32": 1e-5, "F16": 2e-3, "BF16": 2e-2}


def trained(run: TrainRun) -> tuple[Live, Path]:
    """A live model with its adapter after training, and the file that such a training writes."""
    result = train(run)
    found = families.find(run.spec.family)
    folder = Path(run.base_model)
    base = found.load(Where(folder, torch.device("cpu"), torch.float32))
    live = Live(run, found, base)
    for _ in range(6):
        live.step()
    return live, result.path


def answer(family: str, denoiser: Any, live: Live) -> torch.Tensor:
    """What a denoiser says to fixed inputs, through the family's own loss code."""
    found = families.find(family)
    made = found.draw(live.base, torch.stack(live.moments[:2]), torch.Generator().manual_seed(3))
    seen: list[Any] = []

    def recorded(*given: Any, **named: Any) -> Any:
        seen.append(denoiser(*given, **named))
        return seen[-1]

    with torch.no_grad():
        errors(found, replace(live.base, load_denoiser=lambda: recorded), made, live.conditions[:2])
    outputs = seen[0][0]
    return torch.stack(outputs) if isinstance(outputs, list) else outputs


def drawn(pipeline: Any) -> Any:
    """A picture of two steps, [64, 64, 3] in 0..255."""
    chance = torch.Generator().manual_seed(1)
    record = next(family for family in FAMILIES.values() if family.pipeline == type(pipeline).__name__)
    given = {"num_inference_steps": 2, "width": 64, "height": 64, "generator": chance, record.guidance: 3.0}
    return np.asarray(pipeline(prompt="a photo of sks dog", **given, **record.call).images[0], int)


def part_of(pipeline: Any, family: str) -> str:
    return FAMILIES[family].denoiser


FORMS = [(name, form) for name in LOCAL for form in dict.fromkeys((FAMILIES[name].lora.form, "peft"))]
# Of a picture's 255 levels. The file's rounding to 16 bits moves the picture more, see TOLERANCE.
LEVELS = {"F32": 1, "F16": 2, "BF16": 4}
FINER = {"qwen-image": 1, "qwen-image-21": 2}  # their random VAEs move the picture less


@pytest.fixture(scope="module")
def taught() -> dict[str, tuple[Live, bytes]]:
    """The live model and the file of each family, trained once. The folder of a test goes with it, so: its content."""
    return {}


@pytest.mark.parametrize(("family", "form"), FORMS)
def test_diffusers_reads_the_live_model_back(
    runs: Runs, family: str, form: str, taught: dict[str, tuple[Live, bytes]], tmp_path: Path
) -> None:
    """Its answer and its picture are those of the live model, in every form of the file."""
    run = runs(family, rank=4, alpha=32.0, learning_rate=1e-2)
    if family not in taught:
        live, file = trained(run)
        taught[family] = live, file.read_bytes()
    live, written = taught[family]
    kind = FAMILIES[family].lora.naming.kind
    levels = FINER.get(family, LEVELS[kind])
    path = tmp_path / "lora.safetensors"
    path.write_bytes(serialize_as(read_lora(written), form))
    pipeline = sample.load_pipeline(run.base_model, family, torch.device("cpu"))
    denoiser = getattr(pipeline, part_of(pipeline, family))
    before, plain = answer(family, denoiser, live), drawn(pipeline)
    setattr(pipeline, part_of(pipeline, family), live.base.denoiser)
    families.find(family).mend_pipeline(pipeline)  # as `load_pipeline` did for the denoiser of its own
    with live.applied():
        wanted, picture = answer(family, live.base.denoiser, live), drawn(pipeline)
    setattr(pipeline, part_of(pipeline, family), denoiser)
    assert sample.add_lora(pipeline, path) == len(live.cohort.layout.sites)
    got = answer(family, denoiser, live)
    change = (wanted - before).norm()
    assert change > 1e-2 * before.norm()  # the LoRA does something
    assert (got - wanted).norm() < TOLERANCE[kind] * change
    assert np.abs(plain - picture).max() > 3 * levels
    assert np.abs(drawn(pipeline) - picture).max() <= levels


@pytest.mark.parametrize(
    "adapter",
    [
        *[{"targets": "all"}, {"targets": "convolutions"}, {"dora": True}, {"rslora": True}],
        {"targets": "convolutions", "conv_rank": 2, "conv_alpha": 1.0},
    ],
    ids=str,
)
def test_options_of_the_adapter_are_read_back(runs: Runs, adapter: dict[str, Any], tmp_path: Path) -> None:
    """Projections and feed-forward, DoRA's magnitudes, rsLoRA's scale: the live model's answer, from either form."""
    run = runs("sd15", rank=4, alpha=8.0, learning_rate=1e-2, adapter=adapter)
    live, written = trained(run)
    with live.applied():
        wanted = answer("sd15", live.base.denoiser, live)
    for form in ("kohya", "peft"):
        path = tmp_path / f"{form}.safetensors"
        path.write_bytes(serialize_as(read_lora(written), form))
        pipeline = sample.load_pipeline(run.base_model, "sd15", torch.device("cpu"))
        before = answer("sd15", pipeline.unet, live)
        sample.add_lora(pipeline, path)
        assert (answer("sd15", pipeline.unet, live) - wanted).norm() < 1e-4 * (wanted - before).norm(), form


# ---- what ComfyUI reads ------------------------------------------------------------------------------------------

COMFYUI_SUFFIXES = (
    ".lora_up.weight", ".lora_down.weight", ".lora_B.weight", ".lora_A.weight", ".alpha", ".dora_scale",
)  # fmt: skip


def comfyui_accepts(family: str) -> set[str]:
    """The names of modules that ComfyUI's key map has for the full model of a family.

    For a UNet kohya's names, and without them only attention in the form of the old processors; for Z-Image diffusers'
    own names, with or without a prefix.
    """
    modules = [name for name, part in full_size(family).named_modules() if getattr(part, "weight", None) is not None]
    if family == "z-image":
        return {f"{prefix}{name}" for name in modules for prefix in ("diffusion_model.", "transformer.", "")}
    old = re.compile(r"(.*\.attn[12])\.to_(q|k|v|out)(\.0)?")
    plain = {name for name in modules if not old.fullmatch(name)}
    processors = {f"{found[1]}.processor.to_{found[2]}" for name in modules if (found := old.fullmatch(name))}
    named = {f"{prefix}{name}" for name in plain | processors for prefix in ("unet.", "")}
    return named | {"lora_unet_" + name.replace(".", "_") for name in modules}


def keys_of_a_full_lora(family: str, form: str, targets: str) -> set[str]:
    """The tensors in a file of a LoRA on the full model, by a tiny stand-in for each matrix."""
    pair = np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32)
    found = {name: pair for name, _ in full_size(family).named_modules() if re.fullmatch(targets, name)}
    assert found
    data = lora_file.serialize_lora(family, found, 1.0, {"imprint_family": family})
    return set(unpack(serialize_as(read_lora(data), form))[0])


@pytest.mark.parametrize("targets", ["attention", "all"])
@pytest.mark.parametrize(("family", "form"), [("sd15", "kohya"), ("sdxl", "kohya"), ("z-image", "comfyui")])
def test_every_key_of_a_full_lora_is_one_that_comfyui_reads(family: str, form: str, targets: str) -> None:
    accepted = comfyui_accepts(family)
    for key in keys_of_a_full_lora(family, form, families.find(family).targets[targets]):
        end = next(end for end in COMFYUI_SUFFIXES if key.endswith(end))
        assert key.removesuffix(end) in accepted, key


def test_comfyui_passes_over_the_attention_of_a_peft_file() -> None:
    """Why our files are not in that form, and what `imprint inspect` says of those that are."""
    accepted = comfyui_accepts("sd15")
    stems = {
        key.removesuffix(".lora_A.weight")
        for key in keys_of_a_full_lora("sd15", "peft", families.find("sd15").targets["all"])
    }
    missed = {stem for stem in stems if not stem.endswith(".lora_B.weight") and stem not in accepted}
    assert missed
    assert all(".attn" in stem for stem in missed)
    assert any(".ff." in stem for stem in stems & accepted)


def test_diffusers_own_loader_drops_the_magnitudes_that_stand_beside_alphas(runs: Runs) -> None:
    """Why a DoRA is given to it in peft's form, and what `imprint inspect` says; once it reads them, this fails."""
    run = runs("sd15", adapter={"dora": True})
    path = train(run).path
    pipeline = sample.load_pipeline(run.base_model, "sd15", torch.device("cpu"))
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    layers = [module for module in pipeline.unet.modules() if hasattr(module, "lora_magnitude_vector")]
    assert layers
    assert not any(layer.lora_magnitude_vector for layer in layers)
    report = inspect(path)
    assert report.readers["diffusers"] == "without its magnitudes"
    assert any("convert the file to peft" in warning for warning in report.warnings)


def test_scale_survives(runs: Runs) -> None:
    """Rank 4, alpha 32 is scale 8 in the live model, in the file, and after diffusers has read it."""
    run = runs(rank=4, alpha=32.0)
    live, path = trained(run)
    assert live.cohort.stack.scales.tolist() == [[8.0, 8.0]]
    pipeline = sample.load_pipeline(run.base_model, "sd15", torch.device("cpu"))
    sample.add_lora(pipeline, path)
    loaded = [module for module in pipeline.unet.modules() if hasattr(module, "lora_A")]
    assert {scale for layer in loaded for scale in layer.scaling.values()} == {8.0}


def test_keys_are_those_that_comfyui_reads(runs: Runs) -> None:
    held = load_file(train(runs()).path)
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    assert {f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"} <= set(held)
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0.alpha" in held
    assert held[f"{stem}.alpha"].item() == 32.0
    held = load_file(train(runs("z-image", name="z")).path)
    stem = "diffusion_model.layers.1.attention.to_q"
    assert {f"{stem}.lora_A.weight", f"{stem}.lora_B.weight", f"{stem}.alpha"} <= set(held)
    assert held[f"{stem}.lora_A.weight"].dtype == torch.bfloat16
    assert not any("refiner" in name for name in held)


def test_pictures_are_the_same_for_the_same_seed_and_change_with_the_lora(runs: Runs) -> None:
    run = runs(learning_rate=1e-2)
    path = train(run).path
    given: dict[str, Any] = {"steps": 2, "size": (64, 64), "device": "cpu"}
    plain = sample.draw(run.base_model, "sd15", ["a photo of sks dog"], [1], **given)[0]
    again = sample.draw(run.base_model, "sd15", ["a photo of sks dog"], [1], **given)[0]
    changed = sample.draw(run.base_model, "sd15", ["a photo of sks dog"], [1], lora=path, **given)[0]
    assert plain.size == (64, 64)
    assert np.array_equal(np.asarray(plain), np.asarray(again))
    assert not np.array_equal(np.asarray(plain), np.asarray(changed))


def test_a_file_that_does_not_fit_is_no_lora(runs: Runs, tmp_path: Path) -> None:
    run = runs()
    pipeline = sample.load_pipeline(run.base_model, "sd15", torch.device("cpu"))
    pair = np.ones((4, 32)), np.ones((32, 4))
    near, far = (f"down_blocks.{block}.attentions.0.transformer_blocks.0.attn1.to_q" for block in (0, 7))
    lora_file.write_file(tmp_path / "far.safetensors", lora_file.serialize_lora("sd15", {far: pair}, 32.0, {}))
    with pytest.raises(LoraInvalid, match="cannot load"):
        sample.add_lora(pipeline, tmp_path / "far.safetensors")
    # diffusers itself takes this one without a word.
    lora_file.write_file(
        tmp_path / "part.safetensors", lora_file.serialize_lora("sd15", {near: pair, far: pair}, 32.0, {})
    )
    with pytest.raises(LoraInvalid, match="loaded 1 of the 2 layers"):
        sample.add_lora(pipeline, tmp_path / "part.safetensors")
    with pytest.raises(LoraInvalid):
        sample.add_lora(pipeline, tmp_path / "none.safetensors")
