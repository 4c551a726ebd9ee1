"""Hostile weights: LoRA files and base models, each refused in our own words, and nothing of them ever run."""

import pickle
import shutil
from pathlib import Path

import pytest

from core.errors import BaseModelUnavailable, LoraInvalid
from tests.hostile.checkpoints import CHECKPOINTS
from tests.hostile.weights import BASES, LORAS, Runs
from training.lora.file import check_lora_file

RAN = Path("/tmp/imprint-was-here")  # noqa: S108 - what a pickle would leave


@pytest.mark.parametrize("name", LORAS)
def test_a_lora_file_is_refused(name: str) -> None:
    make, words = LORAS[name]
    with pytest.raises(LoraInvalid) as raised:
        check_lora_file(make(), family="sd15", rank=4)
    assert raised.value.message.startswith(words)
    assert len(raised.value.message) < 500
    assert not RAN.exists()


@pytest.mark.parametrize("name", BASES)
def test_a_base_model_is_refused(name: str, base_model: Path, tmp_path: Path) -> None:
    import torch
    from diffusers import UNet2DConditionModel

    from training.families.weights.parts import load_part, locate

    spoil, words = BASES[name]
    folder = tmp_path / "base"
    shutil.copytree(base_model, folder)
    spoil(folder / "unet")
    with pytest.raises(BaseModelUnavailable) as raised:
        load_part(UNet2DConditionModel, locate(str(folder), ("unet",)), "unet", torch.float32)
    assert raised.value.message.startswith(words.format(folder))
    assert not RAN.exists()


@pytest.fixture(scope="module")
def checkpoint(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base model as one file, sound."""
    from tests.training.checkpoints import exported

    return exported(base_model, tmp_path_factory.mktemp("single") / "base.safetensors", "sd15")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_single_file_is_refused(name: str, checkpoint: Path, tmp_path: Path) -> None:
    spoil, words = CHECKPOINTS[name]
    file = tmp_path / "base.safetensors"
    shutil.copy(checkpoint, file)
    shutil.copytree(checkpoint.with_suffix(".parts"), file.with_suffix(".parts"))
    spoil(file)
    with pytest.raises(BaseModelUnavailable) as raised:
        load(file)
    content = words.replace("{.parts}", str(file.with_suffix(".parts"))).replace("{}", str(file))
    assert raised.value.message.startswith(content)
    assert len(raised.value.message) < 700
    assert not RAN.exists()


def load(file: Path) -> None:
    import torch
    from diffusers import UNet2DConditionModel

    from training.families.registry import FAMILIES
    from training.families.weights.parts import config_of, load_part, locate

    found = locate(str(file), FAMILIES["sd15"].parts)
    config_of(found, "unet")
    load_part(UNet2DConditionModel, found, "unet", torch.float32)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".pkl", ".gguf"])
def test_only_safetensors_are_opened(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"base{suffix}"
    file.write_bytes(pickle.dumps(Runs()))
    with pytest.raises(BaseModelUnavailable, match=r"is not a \.safetensors file"):
        load(file)
    assert not RAN.exists()


def test_a_file_beyond_any_size_is_not_opened(tmp_path: Path) -> None:
    file = tmp_path / "base.safetensors"
    with file.open("wb") as held:
        held.truncate(2**40)  # a hole: it takes no room
    with pytest.raises(BaseModelUnavailable, match="has 1099511627776 bytes; at most "):
        load(file)
