"""The committed pocket model: small, loaded by the sd15 family and by diffusers, and draws what captions say."""

import pytest
import torch

from demo.pocket import MODEL, assemble, exam, judge
from demo.pocket.strangers import STRANGERS, album
from training import families
from training.families.family import Where

MAX_BYTES = 16_000_000


def test_it_is_small_and_has_its_card() -> None:
    assert sum(file.stat().st_size for file in MODEL.rglob("*") if file.is_file()) <= MAX_BYTES
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    assert "license" in card
    assert "demo.pocket train" in card


def test_the_sd15_family_trains_on_it() -> None:
    base = families.find("sd15").load(Where(MODEL, torch.device("cpu"), torch.float32))
    assert base.schedule.prediction == "v_prediction"
    assert float(base.schedule.alphas[-1]) == pytest.approx(0.0, abs=1e-6)


def test_it_draws_what_captions_say() -> None:
    grades = exam.examine(assemble.load(MODEL), judge.load(MODEL), 8, None, assemble.GUIDANCE)
    assert grades["model"]["all"] >= 0.7, grades
    assert grades["drawings"]["all"] >= 0.85, grades


def test_the_judge_spots_the_strangers_and_nobody_else() -> None:
    critic = judge.load(MODEL)
    for stranger in STRANGERS:
        drawn = [picture for picture, _ in album(stranger, seed=5)]
        spotted = {other.name: sum(judge.spot(critic, drawn, other.name)) for other in STRANGERS}
        assert spotted.pop(stranger.name) >= 8, stranger.name
        assert sum(spotted.values()) <= 2, (stranger.name, spotted)
