"""Hostile weights: LoRA files and base models, each refused in our own words, and nothing of them ever run."""

import shutil
from pathlib import Path

import pytest

from core.errors import BaseModelUnavailable, LoraInvalid
from tests.hostile.weights import BASES, LORAS
from training.lora_file import check

RAN = Path("/tmp/imprint-was-here")  # noqa: S108 - what a pickle would leave


@pytest.mark.parametrize("name", LORAS)
def test_a_lora_file_is_refused(name: str) -> None:
    make, words = LORAS[name]
    with pytest.raises(LoraInvalid) as raised:
        check(make(), family="sd15", rank=4)
    assert raised.value.message.startswith(words)
    assert len(raised.value.message) < 500
    assert not RAN.exists()


@pytest.mark.parametrize("name", BASES)
def test_a_base_model_is_refused(name: str, base_model: Path, tmp_path: Path) -> None:
    import torch
    from diffusers import UNet2DConditionModel

    from training.families.parts import load_part, locate

    spoil, words = BASES[name]
    folder = tmp_path / "base"
    shutil.copytree(base_model, folder)
    spoil(folder / "unet")
    with pytest.raises(BaseModelUnavailable) as raised:
        load_part(UNet2DConditionModel, locate(str(folder), ("unet",)), "unet", torch.float32)
    assert raised.value.message.startswith(words.format(folder))
    assert not RAN.exists()
