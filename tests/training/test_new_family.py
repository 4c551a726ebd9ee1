"""A family that is added in one record trains, and its file is checked, inspected and converted."""

from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import BaseModelUnavailable
from tests.made_up_family import FAR_AWAY, MADE_UP, registered
from training.backends.local import train
from training.lora.file import check_lora_file
from training.lora.formats import serialize_as
from training.lora.inspect import inspect
from training.lora.reading import read_lora
from training.ports import TrainRun


def test_it_trains_and_its_file_is_known(runs: Callable[..., TrainRun], bases: Callable[..., Path]) -> None:
    with registered(MADE_UP):
        done = train(runs("made-up", base=bases("sd15"), max_steps=2, rank=6, alpha=6.0))
        assert check_lora_file(done.path, family="made-up", rank=6).metadata["ss_base_model_version"] == "made-up-1"
        seen = inspect(done.path)
        assert (seen.family, seen.verdict, seen.readers["ComfyUI"]) == ("made-up", "sound", "whole")
        assert inspect(serialize_as(read_lora(done.path), "peft")).family == "made-up"


def test_a_family_without_code_is_not_trained_here(runs: Callable[..., TrainRun], bases: Callable[..., Path]) -> None:
    with registered(FAR_AWAY), pytest.raises(BaseModelUnavailable, match="only on rented GPUs"):
        train(runs("made-up", base=bases("sd15")))
