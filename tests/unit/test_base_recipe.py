"""A base model may carry its own default recipe: below a request's options, above those of its family."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import SpecInvalid
from demo.pocket import MODEL
from training.base_recipe import with_recipe_of
from training.spec import TrainSpec

CARRIED: dict[str, Any] = {
    "optimizer": "prodigy", "learning_rate": 1.0, "rank": 24, "max_steps": 700,
    "optimization": {"schedule": "cosine", "ema_decay": 0.99},
}  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "recipe.json").write_text(json.dumps(CARRIED))
    return tmp_path


def test_what_is_not_asked_for_comes_from_the_base_model(base: Path) -> None:
    assert with_recipe_of(str(base), {}) == CARRIED
    made = with_recipe_of(str(base), {"rank": 8, "optimization": {"schedule": "linear"}})
    assert made == CARRIED | {"rank": 8, "optimization": {"schedule": "linear", "ema_decay": 0.99}}
    # A rate belongs to its optimizer, and steps would replace the epochs that were asked for.
    made = with_recipe_of(str(base), {"optimizer": "adamw", "epochs": 5})
    assert "learning_rate" not in made
    assert "max_steps" not in made


def test_beside_a_single_file_and_where_there_is_none(base: Path) -> None:
    parts = base / "model.parts"
    parts.mkdir()
    (base / "recipe.json").rename(parts / "recipe.json")
    assert with_recipe_of(str(base / "model.safetensors"), {}) == CARRIED
    assert with_recipe_of("owner/hub-id", {"rank": 3}) == {"rank": 3}


@pytest.mark.parametrize("text", ["{", "[]", '{"base_model": "x"}', '{"webhook_url": "x"}'])
def test_what_is_no_recipe_is_a_fault_of_the_base_model(base: Path, text: str) -> None:
    (base / "recipe.json").write_text(text)
    with pytest.raises(SpecInvalid) as refused:
        with_recipe_of(str(base), {})
    assert set(refused.value.faults) == {"base_model"}


def test_the_pocket_models_own_recipe_is_one() -> None:
    named = {"base_model": str(MODEL), "family": "sd15", "trigger_word": "imp", "seed": 1}
    spec = TrainSpec(**with_recipe_of(str(MODEL), named))
    assert (spec.learning_rate, spec.objective.weighting) == (6e-4, "min_snr")
