"""Drawing on this machine: the same picture from both forms of a LoRA file, more or less of it by strength."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import SpecInvalid
from core.settings import Settings
from jobs.services import Services
from jobs.subjects import drawing
from jobs.subjects.drawing import LocalDrawing
from jobs.subjects.lora_weights import LoraWeights, inspect_weights
from tests.lora_layouts import written
from training.backends.local import train
from training.lora import formats as lora_formats
from training.lora.inspect import inspect
from training.lora.reading import read_lora
from training.lora.safetensor import pack, unpack
from training.ports import TrainRun


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return Services(Settings(_env_file=None, home=tmp_path / "home"))


@pytest.mark.parametrize(("family", "forms"), [("sd15", ("kohya", "peft")), ("z-image", ("comfyui", "peft"))])
def test_the_same_pictures_from_both_forms(
    family: str, forms: tuple[str, str], services: Services, runs: Callable[..., TrainRun], bases: Callable[..., Path]
) -> None:
    run = runs(family, learning_rate=1e-2, max_steps=4)
    train(run)
    made: dict[str, Any] = {}
    for form in forms:
        path = run.out.with_name(f"{form}.safetensors")
        path.write_bytes(lora_formats.serialize_as(read_lora(run.out), form))
        weights = inspect_weights(path)
        assert (weights.trigger_word, weights.family) == ("sks dog", family)
        made[form] = draw(services, bases(family), weights, family)
    own, peft = (made[form] for form in forms)
    assert own == peft
    assert len(set(own)) == 2  # two seeds
    without = draw(services, bases(family), None, family, prompt="sks dog, on a beach")
    assert own != without
    assert draw(services, bases(family), weights, family, strength=0.0) == without
    assert draw(services, bases(family), weights, family, strength=0.5) not in (own, without)


def draw(
    services: Services,
    base: Path,
    weights: LoraWeights | None,
    family: str,
    *,
    strength: float = 1.0,
    prompt: str = "on a beach",
) -> list[bytes]:
    how = LocalDrawing(prompt, (3, 4), str(base), family, steps=2, guidance=2.0, size=(64, 64), device="cpu")
    return drawing.draw_locally(services, how, weights, strength=strength, trigger_word=None)


def test_the_base_model_tells_its_family_and_refuses_loras_of_others(
    services: Services, bases: Callable[..., Path], tmp_path: Path
) -> None:
    how = LocalDrawing("x", (1,), str(bases("sdxl")), steps=1, size=(64, 64), device="cpu")
    assert len(drawing.draw_locally(services, how, None, strength=1.0, trigger_word=None)) == 1
    path = tmp_path / "sd15.safetensors"
    path.write_bytes(written("sd15", "kohya"))
    with pytest.raises(SpecInvalid, match="is of family sdxl, but the LoRA is of sd15"):
        drawing.draw_locally(services, how, inspect_weights(path), strength=1.0, trigger_word=None)


def test_a_form_that_diffusers_does_not_read_is_converted(
    services: Services, runs: Callable[..., TrainRun], bases: Callable[..., Path]
) -> None:
    """Z-Image's names as LyCORIS writes them, which ComfyUI reads and diffusers does not."""
    run = runs("z-image", learning_rate=1e-2, max_steps=2)
    train(run)
    own = inspect_weights(run.out)
    tensors, metadata = unpack(run.out.read_bytes())
    ends = {".lora_A.weight": ".lora_down.weight", ".lora_B.weight": ".lora_up.weight", ".alpha": ".alpha"}
    renamed = {
        "lycoris_" + name.removeprefix("diffusion_model.").removesuffix(end).replace(".", "_") + theirs: part
        for name, part in tensors.items()
        for end, theirs in ends.items()
        if name.endswith(end)
    }
    path = run.out.with_name("lycoris.safetensors")
    path.write_bytes(pack(renamed, metadata))
    assert inspect(path).readers["diffusers"].startswith("no")
    theirs = inspect_weights(path)
    assert draw(services, bases("z-image"), theirs, "z-image") == draw(services, bases("z-image"), own, "z-image")


def test_what_must_be_said(services: Services) -> None:
    with pytest.raises(SpecInvalid, match="base_model: the LoRA file does not say"):
        drawing.draw_locally(services, LocalDrawing("x", (1,)), None, strength=1.0, trigger_word=None)
    with pytest.raises(SpecInvalid, match="family: give the family of the base model"):
        drawing.draw_locally(services, LocalDrawing("x", (1,), "/somewhere"), None, strength=1.0, trigger_word=None)
