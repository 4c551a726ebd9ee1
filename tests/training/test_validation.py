"""Validation and previews: held-out pictures, early stop, the best validation. No effect on the training."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from core.errors import TooFewImages
from tests.training.conftest import MemoryCheckpoints, MemoryPreviews, Watcher
from tests.training.test_engine import side_by_side
from training import families
from training.backends import checkpoint
from training.backends.encoded_dataset import split_held_out
from training.backends.local import train
from training.checkpoint_folder import FolderCheckpoints, FolderPreviews
from training.engine.evaluation.validation import is_best, is_over
from training.engine.state import State
from training.families.family import Base, Where
from training.lora import file as lora_file
from training.lora.safetensor import pack, unpack
from training.ports import TrainResult, TrainRun

Runs = Callable[..., TrainRun]

# Every option of ours at once.
ALL: dict[str, Any] = {
    "class_word": "dog",
    "batch_size": 2,
    "objective": {
        "weighting": "min_snr",
        "noise_offset": 0.05,
        "prior_weight": 0.3,
        "prior_share": 0.3,
        "masked": True,
    },
    "data": {"caption_dropout": 0.3, "flip": True},
    "validation": {"held_out": 1, "every_epochs": 1, "keep_best": True, "previews": ["sks dog"]},
}


def weights(result: TrainResult) -> dict[str, bytes]:
    tensors, _ = unpack(result.path.read_bytes())
    return {name: held.elements.tobytes() for name, held in tensors.items()}


@pytest.fixture
def quick_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Previews are drawn in 4 steps, whatever the base says."""
    monkeypatch.setattr(Base, "drawing", property(lambda _: (4, 5.0), lambda *_: None))


# ---- held out ------------------------------------------------------------------------------------------------------


def test_pictures_are_held_out_by_the_seed(runs: Runs) -> None:
    run = runs(count=8, validation={"held_out": 3})
    trained, held = split_held_out(run.examples, run.spec)
    assert (len(trained), len(held)) == (5, 3)
    assert not {one.sha256 for one in trained} & {one.sha256 for one in held}
    assert split_held_out(run.examples, run.spec) == (trained, held)
    specs = [runs(seed=number, count=8, validation={"held_out": 3}).spec for number in range(8)]
    others = {tuple(one.sha256 for one in split_held_out(run.examples, spec)[1]) for spec in specs}
    assert len(others) > 3
    assert runs(validation={"held_out": 2}, max_steps=None, epochs=10).spec.steps(8) == 60
    with pytest.raises(TooFewImages, match="leaves none to train on"):
        train(runs(count=5, validation={"held_out": 5}))


@pytest.mark.usefixtures("quick_drawing")
@pytest.mark.parametrize("family", ["sd15", "z-image"])
def test_evaluations_change_no_bit(runs: Runs, family: str) -> None:
    """As if the held-out picture had never been there, and as if there were no evaluations."""
    options: dict[str, Any] = {"count": 6, "max_steps": 7}
    evaluated = runs(
        family, name="evaluated", validation={"held_out": 1, "every_epochs": 1, "previews": ["sks"]}, **options
    )
    evaluated = replace(evaluated, previews=MemoryPreviews())
    blind = runs(family, name="blind", validation={"held_out": 1, "every_epochs": 500}, **options)
    without = replace(
        runs(family, name="without", **options), examples=split_held_out(evaluated.examples, evaluated.spec)[0]
    )
    made = [train(run) for run in (evaluated, blind, without)]
    assert weights(made[0]) == weights(made[1]) == weights(made[2])
    assert made[0].validation_loss == made[1].validation_loss is not None
    assert made[2].validation_loss is None
    assert made[0].metadata["imprint_step"] == "7"
    assert made[0].metadata["ss_num_train_images"] == "5"
    assert "imprint_step" not in made[2].metadata


def test_validation_losses_are_comparable_between_trainings(runs: Runs) -> None:
    """Noise and times are the picture's: before anything is learnt, any seed and any objective give the same."""
    options: dict[str, Any] = {"learning_rate": 1e-7, "max_steps": 1, "count": 6}
    losses = set()
    for number, objective in enumerate(({}, {"weighting": "min_snr"}, {"noise_offset": 0.5})):
        run = runs(name=str(number), validation={"held_out": 5}, objective=objective, **options)
        loss = train(run).validation_loss
        assert loss is not None
        losses.add(round(loss, 4))
    assert len(losses) == 1


def test_the_validation_loss_is_told(runs: Runs) -> None:
    watcher = Watcher()
    result = train(runs(control=watcher, max_steps=12, validation={"held_out": 1, "every_epochs": 1}))
    assert watcher.reports[-1].validation_loss == result.validation_loss
    assert watcher.reports[-1].validation_loss is not None


# ---- early stop, the best validation -------------------------------------------------------------------------------


def test_when_it_is_over() -> None:
    assert not is_over([], 1)
    assert not is_over([(1, 3.0), (2, 2.0)], 1)
    assert is_over([(1, 2.0), (2, 2.0)], 1), "no better is no better"
    assert not is_over([(1, 2.0), (2, 3.0)], 2)
    assert is_over([(1, 2.0), (2, 3.0), (3, 2.5)], 2)
    assert not is_over([(1, 2.0), (2, 3.0), (3, 2.5)], 0)
    assert [is_best(losses) for losses in ([(1, 2.0)], [(1, 2.0), (2, 1.0)], [(1, 1.0), (2, 1.0)])] == [
        True,
        True,
        False,
    ]


def test_a_training_that_gets_worse_ends_early_and_gives_its_best(runs: Runs) -> None:
    """With so high a rate it learns to say nonsense. What is delivered is the state at the best validation."""
    options: dict[str, Any] = {"learning_rate": 5e-2, "max_steps": 400, "every": 1}
    every = {"held_out": 1, "every_epochs": 1}
    watcher, kept = Watcher(), MemoryCheckpoints()
    ended = train(
        runs(
            name="ended",
            checkpoints=kept,
            control=watcher,
            validation=every | {"patience": 2, "keep_best": True},
            **options,
        )
    )
    assert ended.steps < 400
    assert ended.steps == kept.steps()[-1] == watcher.reports[-1].step == watcher.reports[-1].total
    assert ended.metadata["ss_steps"] == str(ended.steps)
    best = int(ended.metadata["imprint_step"])
    assert best == ended.steps - 2 * 4
    # The same, stopped by its length at the best validation, and one that was killed and goes on.
    short = train(runs(name="short", validation=every, **options | {"max_steps": best}))
    assert weights(short) == weights(ended)
    assert short.validation_loss == ended.validation_loss
    for step in kept.steps():
        if step > best:
            del kept.held[step]
    resumed = train(
        runs(name="resumed", checkpoints=kept, validation=every | {"patience": 2, "keep_best": True}, **options)
    )
    assert resumed.resumed_from == best
    assert resumed.sha256 == ended.sha256
    exported = train(
        runs(name="exported", checkpoints=kept, validation=every | {"patience": 2, "keep_best": True}, **options)
    )
    assert (exported.resumed_from, exported.train_seconds) == (ended.steps, 0.0)
    assert exported.sha256 == ended.sha256


# ---- previews ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_drawing")
def test_previews_are_pictures_of_the_way(runs: Runs, tmp_path: Path) -> None:
    previews = MemoryPreviews()
    asked = {"previews": ["a photo of sks dog", "a lawn"], "every_epochs": 1}
    run = runs(max_steps=7, validation=asked, previews=previews, learning_rate=1e-2)
    first = train(run)
    assert sorted(previews.held) == [(step, prompt) for step in (5, 7) for prompt in (0, 1)]
    pictures = {at: np.asarray(Image.open(io.BytesIO(png))) for at, png in previews.held.items()}
    assert {picture.shape for picture in pictures.values()} == {(64, 64, 3)}
    assert (pictures[5, 0] != pictures[7, 0]).any(), "it is the live adapter that draws"
    assert (pictures[5, 0] != pictures[5, 1]).any()
    # The same again, into a folder, and beside other trainings.
    folder = FolderPreviews(tmp_path / "shown")
    again, *_ = side_by_side(
        replace(run, out=tmp_path / "again.safetensors", previews=folder, checkpoints=MemoryCheckpoints()),
        runs(name="beside", seed=4, max_steps=12),
    )
    assert isinstance(again, TrainResult)
    assert again.sha256 == first.sha256
    assert (tmp_path / "shown" / "prompt-1-step-000007.png").read_bytes() == previews.held[7, 0]


@pytest.mark.usefixtures("quick_drawing")
def test_the_base_model_draws_before_the_first_step(runs: Runs) -> None:
    """It is no validation, and changes nothing of the training."""
    asked = {"previews": ["a lawn"], "every_epochs": 1, "held_out": 1, "keep_best": True}
    plain = runs(max_steps=5, validation=asked, previews=MemoryPreviews())
    without = train(plain)
    previews = MemoryPreviews()
    given = {"name": "drawn", "max_steps": 5, "validation": asked, "previews": previews}
    result = train(replace(runs(**given), baseline=True))
    assert isinstance(plain.previews, MemoryPreviews)
    assert {at: png for at, png in previews.held.items() if at[0]} == plain.previews.held
    assert (0, 0) in previews.held
    assert (result.sha256, result.validation_loss) == (without.sha256, without.validation_loss)


@pytest.mark.parametrize("family", ["sdxl", "z-image"])
def test_previews_of_every_family(runs: Runs, family: str) -> None:
    previews = MemoryPreviews()
    train(runs(family, max_steps=1, validation={"previews": ["sks dog"]}, previews=previews))
    assert Image.open(io.BytesIO(previews.held[1, 0])).size == (64, 64)


@pytest.mark.usefixtures("quick_drawing")
def test_previews_that_cannot_be_kept_cost_no_training(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    class Full(MemoryPreviews):
        def save(self, step: int, prompt: int, png: bytes) -> None:
            raise OSError(28, "No space left on device")

    assert train(runs(max_steps=2, validation={"previews": ["sks"]}, previews=Full())).steps == 2
    assert "could not be saved" in caplog.text


# ---- all at once ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_drawing")
def test_killed_and_resumed_with_every_option_on(runs: Runs) -> None:
    """Byte-identical, alone or beside a job with other options in the same step."""
    kept = MemoryCheckpoints()
    run = runs(count=6, max_steps=7, every=1, checkpoints=kept, previews=MemoryPreviews(), slots=2, **ALL)
    whole = train(run)
    for step in kept.steps():
        if step > 4:
            del kept.held[step]
    # Of the same shape but for how it counts: they share a step.
    other = runs(name="other", count=6, batch_size=2, seed=3, slots=2, max_steps=12,
                 objective={"prior_weight": 0.1})  # fmt: skip
    resumed, beside = side_by_side(replace(run, out=run.out.with_name("resumed")), other)
    assert isinstance(resumed, TrainResult)
    assert isinstance(beside, TrainResult)
    assert resumed.resumed_from == 3
    assert resumed.sha256 == whole.sha256


def test_options_of_a_neighbour_change_nobody_else(runs: Runs) -> None:
    mine: dict[str, Any] = {"slots": 4, "max_steps": 24}
    alone = train(runs(name="alone", **mine))
    weighted = {
        "objective": {"weighting": "debiased", "noise_offset": 0.1, "prior_share": 0.3},
        "data": {"flip": True},
    }
    beside, *_ = side_by_side(
        runs(name="beside", **mine), *(runs(name=str(n), seed=n, slots=4, max_steps=30, **weighted) for n in (1, 2))
    )
    assert isinstance(beside, TrainResult)
    assert beside.sha256 == alone.sha256


# ---- checkpoints ---------------------------------------------------------------------------------------------------


def test_the_last_two_checkpoints_and_every_tenth_epoch_stay(runs: Runs, tmp_path: Path) -> None:
    kept = FolderCheckpoints(tmp_path / "kept")
    train(runs(max_steps=63, every=1, checkpoints=kept))
    assert kept.steps() == [50, 60, 63]


def test_previews_of_turbo_are_without_its_training_adapter(runs: Runs, tmp_path: Path) -> None:
    """Inside, the base says what it would say without the adapter; no weight changes, inside or afterwards."""
    chance = np.random.default_rng(0)
    pair = chance.normal(size=(2, 64)).astype("f4"), chance.normal(size=(64, 2)).astype("f4")
    adapter = tmp_path / "adapter.safetensors"
    lora_file.write_file(adapter, lora_file.serialize_lora("z-image", {"layers.0.attention.to_q": pair}, 4.0, {}))
    found, folder = families.find("z-image"), Path(runs("z-image").base_model)
    plain, merged = (found.load(Where(folder, torch.device("cpu"), torch.float32, given)) for given in (None, adapter))
    weight = merged.denoiser.layers[0].attention.to_q.weight
    before = weight.clone()
    caption = torch.randn(7, merged.denoiser.config.cap_feat_dim, generator=torch.Generator().manual_seed(1))
    mixed = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(2))

    def text(base: Base) -> Tensor:
        with torch.no_grad():
            return found.predict(base, mixed, torch.tensor([0.5]), [{"context": caption}])

    trained = text(merged)
    assert not torch.allclose(trained, text(plain), atol=1e-3)
    with found.as_used(merged):
        assert torch.allclose(text(merged), text(plain), atol=1e-5)
        assert torch.equal(weight, before)
    assert torch.equal(text(merged), trained)
    with pytest.raises(ZeroDivisionError), found.as_used(merged):
        1 // 0  # noqa: B018 - whatever happens inside
    assert torch.equal(text(merged), trained)


# ---- checkpoints of earlier versions -------------------------------------------------------------------------------


def test_validation_losses_under_their_earlier_name_are_read() -> None:
    state = State(3, weights={}, prediction="epsilon", validation_losses=((1, 2.0), (2, 1.5)))
    tensors, facts = unpack(checkpoint.serialize(state, {"base": "a"}, {}))
    facts["looks"] = facts.pop("validation_losses")
    del facts["sha256"]
    facts["sha256"] = checkpoint._content(tensors, facts)
    assert checkpoint.deserialize(pack(tensors, facts), {"base": "a"}, 3) == state
