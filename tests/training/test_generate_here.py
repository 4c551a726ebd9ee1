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
from training.backends.local import train
from training.lora import formats as lora_formats
from training.lora.reading import read_lora
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


def test_what_must_be_said(services: Services) -> None:
    with pytest.raises(SpecInvalid, match="base_model: the LoRA file does not say"):
        drawing.draw_locally(services, LocalDrawing("x", (1,)), None, strength=1.0, trigger_word=None)
    with pytest.raises(SpecInvalid, match="family: give the family of the base model"):
        drawing.draw_locally(services, LocalDrawing("x", (1,), "/somewhere"), None, strength=1.0, trigger_word=None)
