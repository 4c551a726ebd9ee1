"""What counts in the loss, against numbers worked out by hand; and that a recipe without options is what it was."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.families import LOCAL
from tests.training.live import Live, of
from training import families
from training.data.dataset import class_caption
from training.engine import objective
from training.engine.cohorts.job_batch import draw, offset
from training.families import diffusion, flow, z_image
from training.families.family import Base, Draw, Where
from training.families.latents import mask
from training.ports import Example, TrainRun
from training.spec import TrainSpec

Runs = Callable[..., TrainRun]
CPU = torch.device("cpu")


def base_of(run: TrainRun) -> Base:
    return families.find(run.spec.family).load(Where(Path(run.base_model), CPU, torch.float32))


# ---- how much each noise level counts ----------------------------------------------------------------------------

# a = 0.9, 0.5, 0.1: SNR = a / (1 - a) = 9, 1, 1/9.
ALPHAS = torch.tensor([0.9, 0.5, 0.1])
BY_HAND = {
    ("epsilon", "none"): [1.0, 1.0, 1.0],
    ("epsilon", "min_snr"): [5 / 9, 1.0, 1.0],  # min(SNR, 5) / SNR
    ("v_prediction", "min_snr"): [5 / 10, 1 / 2, (1 / 9) / (10 / 9)],  # min(SNR, 5) / (SNR + 1)
    ("epsilon", "debiased"): [1 / 3, 1.0, 3.0],  # 1 / sqrt SNR
    ("v_prediction", "debiased"): [3 / 10, 1 / 2, (1 / 3) / (10 / 9)],  # sqrt SNR / (SNR + 1)
}


@pytest.mark.parametrize(("prediction", "weighting"), list(BY_HAND))
def test_weights_of_noise_levels(prediction: str, weighting: str) -> None:
    base = of(diffusion.DiscreteSchedule(ALPHAS, 1.0, prediction))
    assert diffusion.weigh(base, torch.arange(3), weighting).tolist() == pytest.approx(
        BY_HAND[prediction, weighting], rel=1e-5
    )


def test_weights_of_flow_with_its_shift() -> None:
    base = of(z_image.FlowSchedule(3.0, 1.0, 0.0))
    # u = 0.1, 0.25 at shift 3: 0.3 / 1.2 = 0.25 and 0.75 / 1.5 = 0.5; SNR = 9 and 1.
    s = flow.shifted(torch.tensor([0.1, 0.25]), 3.0)
    assert s.tolist() == pytest.approx([0.25, 0.5])
    # The error of n - x is that of x over s^2: min(9, 5) * 0.0625 and min(1, 5) * 0.25; 3 * 0.0625 and 1 * 0.25.
    assert flow.weigh(base, s, "min_snr").tolist() == pytest.approx([0.3125, 0.25])
    assert flow.weigh(base, s, "debiased").tolist() == pytest.approx([0.1875, 0.25])


@pytest.mark.parametrize("weighting", ["min_snr", "debiased"])
def test_one_weighting_is_one_thing_whatever_is_predicted(weighting: str) -> None:
    """Weights of epsilon, v and flow weigh the same error of the clean latents alike."""
    a = ALPHAS.double()
    snr = a / (1 - a)
    clean = {}
    for prediction, per_clean in (("epsilon", snr), ("v_prediction", snr + 1)):
        base = of(diffusion.DiscreteSchedule(ALPHAS, 1.0, prediction))
        clean[prediction] = diffusion.weigh(base, torch.arange(3), weighting).double() * per_clean
    s = 1 / (1 + snr.sqrt())
    clean["flow"] = flow.weigh(of(None), s, weighting).double() / s**2
    wanted = snr.clamp(max=5.0) if weighting == "min_snr" else snr.sqrt()
    for found in clean.values():
        assert found.tolist() == pytest.approx(wanted.tolist(), rel=1e-5)


def test_zero_terminal_snr_has_finite_weights() -> None:
    for prediction in diffusion.PREDICTIONS:
        base = of(diffusion.DiscreteSchedule(torch.tensor([0.9, 0.0]), 1.0, prediction))
        for weighting in ("min_snr", "debiased"):
            assert diffusion.weigh(base, torch.tensor([1]), weighting).isfinite().all()


# ---- noise offset, masks ------------------------------------------------------------------------------------------


def test_noise_offset_moves_whole_channels() -> None:
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    moved = offset(noise, 0.1, seed=7, step=3) - noise
    flat = moved.flatten(2)
    assert torch.allclose(flat, flat[..., :1].expand_as(flat), atol=1e-6)
    assert len({round(value, 6) for value in flat[..., 0].flatten().tolist()}) == 8
    assert torch.equal(offset(noise, 0.1, seed=7, step=3), offset(noise, 0.1, seed=7, step=3))
    assert not torch.equal(offset(noise, 0.1, seed=7, step=4), offset(noise, 0.1, seed=7, step=3))
    many = torch.cat([(offset(noise, 0.1, 7, step) - noise).flatten(2)[..., 0] for step in range(500)])
    assert many.std().item() == pytest.approx(0.1, rel=0.05)


def test_a_mask_by_hand(tmp_path: Path) -> None:
    """The left half shown, the top of the right half at 51 of 255: [1, 0.2; 1, 0] on average 0.55."""
    values = np.zeros((16, 16, 4), np.uint8)
    values[:, :8, 3] = 255
    values[:8, 8:, 3] = 51
    Image.fromarray(values).save(tmp_path / "a.png")
    found = mask(Example(tmp_path / "a.png", "", "a", 16, 16), (2, 2))
    assert found.flatten().tolist() == pytest.approx([1 / 0.55, 0.2 / 0.55, 1 / 0.55, 0.0])
    # Errors 1, 2, 3, 4 squared at the four places: (1 + 0.2 * 4 + 9) / 0.55 / 4.
    predicted = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 2, 2)
    error = objective.per_sample_error(predicted, torch.zeros_like(predicted), found.unsqueeze(0))
    assert error.tolist() == pytest.approx([10.8 / 0.55 / 4])


def test_pictures_without_a_mask_count_everywhere(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "rgb.png")
    Image.new("RGBA", (16, 16), (9, 9, 9, 0)).save(tmp_path / "nothing.png")
    for name in ("rgb", "nothing"):
        assert mask(Example(tmp_path / f"{name}.png", "", name, 16, 16), (2, 2)).tolist() == [[[1.0, 1.0], [1.0, 1.0]]]


# ---- what one job brings to a step --------------------------------------------------------------------------------


def test_draws_differ_by_what_is_asked_for_only(runs: Runs) -> None:
    """Options move nothing else: latents, noise and times stay those of the seed."""
    found = families.find("sd15")
    base = base_of(runs())
    plain = Live(runs(batch_size=4, wide=5), found, base).job
    options: dict[str, Any] = {
        "objective": {"weighting": "min_snr", "prior_weight": 0.5},
        "data": {"caption_dropout": 0.5, "flip": True},
    }
    asked = Live(runs(batch_size=4, wide=5, **options), found, base_of(runs())).job
    silent = turned = 0
    for step in range(20):
        before, after = draw(found, base, plain, step), draw(found, base, asked, step)
        assert torch.equal(before.made.noise, after.made.noise)
        assert torch.equal(before.made.times, after.made.times)
        assert (before.made.weights == 1).all()
        assert (before.made.priors == 0).all()
        assert after.made.priors.tolist() == [0.5] * 4
        weights = found.weigh(base, after.made.times, "min_snr")
        assert torch.equal(after.made.weights, weights.view(-1, 1, 1, 1).expand_as(after.made.weights))
        assert not before.classes
        for place in range(4):
            silent += any(after.conditions[place] is blank for blank in asked.extras.blanks)
            turned += not torch.equal(before.made.latents[place], after.made.latents[place])
        again = draw(found, base, asked, step)
        assert all(torch.equal(one, other) for one, other in zip(after.made.parts, again.made.parts, strict=True))
    assert 20 < silent < 60
    assert 20 < turned < 60


def test_a_mirrored_picture_is_encoded_mirrored(runs: Runs) -> None:
    from training.families.latents import pixels

    one = runs().examples[0]
    assert torch.equal(pixels(replace(one, is_mirrored=True)), pixels(one).flip(-1))


# ---- the prior ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trigger", "word", "caption", "wanted"),
    [
        ("sks", "dog", "a photo of sks dog", "a photo of dog"),
        ("sks dog", "dog", "a photo of sks dog", "a photo of dog"),
        ("sks", "dog", "SKS on a lawn, sks dog", "dog on a lawn, dog"),
        ("sks", "", "a photo of sks", "a photo of"),
        ("sks", "", "sks, on a lawn", "on a lawn"),
        ("sks", "dog", "sksy things", "sksy things"),
    ],
)
def test_class_captions(trigger: str, word: str, caption: str, wanted: str) -> None:
    spec = TrainSpec(base_model="sd15", trigger_word=trigger, class_word=word, seed=0)  # type: ignore[call-arg]
    assert class_caption(spec, caption) == wanted


@pytest.mark.parametrize("family", LOCAL)
def test_the_prior_by_hand(runs: Runs, family: str) -> None:
    """Weight times the mean squared difference of what LoRA and base say of the class; nothing while B is zero."""
    run, found = runs(family, objective={"prior_weight": 0.5}, class_word="dog"), families.find(family)
    live = Live(run, found, base_of(run))
    assert live.cohort.shape.has_prior
    batch = draw(found, live.base, live.job, 0)
    with live.applied():
        first = objective.losses(found, live.base, live.engine.layers, batch.made, batch.conditions, batch.classes)
        assert torch.equal(first, objective.errors(found, live.base, batch.made, batch.conditions))
    for _ in range(3):
        live.step()
    with live.applied():
        noisy = found.mix(live.base, batch.made)
        with_lora = found.predict(live.base, noisy, batch.made.times, batch.classes)
        own = objective.errors(found, live.base, batch.made, batch.conditions)
        whole = objective.losses(found, live.base, live.engine.layers, batch.made, batch.conditions, batch.classes)
    without = found.predict(live.base, noisy, batch.made.times, batch.classes)
    strays = (with_lora - without).pow(2).mean()
    assert strays > 0
    assert (whole - own).item() == pytest.approx(0.5 * strays.item(), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("family", LOCAL)
def test_recalled_samples_by_hand(runs: Runs, family: str) -> None:
    """Of some samples it is asked what the base says of the class; the others' losses keep every bit."""
    options: dict[str, Any] = {"batch_size": 4, "class_word": "dog", "objective": {"prior_share": 0.5}}
    run, found = runs(family, **options), families.find(family)
    live = Live(run, found, base_of(run))
    for _ in range(3):
        live.step()
    recalled = 0
    for step in range(3, 8):
        batch = draw(found, live.base, live.job, step)
        given = (found, live.base, live.engine.layers, batch.made, batch.conditions)
        with live.applied():
            losses = objective.losses(*given, recalls=True)
            plain = objective.losses(*given)
            predicted = found.predict(live.base, found.mix(live.base, batch.made), batch.made.times, batch.conditions)
        base = found.predict(live.base, found.mix(live.base, batch.made), batch.made.times, batch.conditions)
        away = (predicted - base).pow(2).flatten(1).mean(1)
        for row, is_recalled in enumerate(batch.made.recalled.tolist()):
            recalled += is_recalled
            assert any(batch.conditions[row] is one for one in live.job.extras.classes) == is_recalled
            assert losses[row] == (pytest.approx(away[row].item(), rel=1e-5) if is_recalled else plain[row])
            assert not is_recalled or losses[row] > 0
    assert 4 < recalled < 16


def test_what_is_recalled_is_chances_choice_and_nothing_else_moves(runs: Runs, tmp_path: Path) -> None:
    """A fifth of the samples, the same again; noise, times and the other samples stay; masks are for pictures."""
    found = families.find("sd15")
    options: dict[str, Any] = {"batch_size": 4, "wide": 5, "class_word": "dog"}
    shown = np.zeros((96, 96, 4), np.uint8)
    shown[:, :48] = 255

    def seat(**asked: Any) -> Any:
        run = runs(objective={"masked": True, **asked}, **options)
        examples = []
        for place, one in enumerate(run.examples):
            path = tmp_path / f"{place}.png"
            Image.fromarray(shown[: one.height, : one.width]).resize((one.width, one.height)).save(path)
            examples.append(replace(one, path=path))
        return Live(replace(run, examples=tuple(examples)), found, base_of(run)).job

    plain, asked = seat(), seat(prior_share=0.2)
    base, recalled = base_of(asked.run), []
    for step in range(50):
        before, after = draw(found, base, plain, step), draw(found, base, asked, step)
        assert torch.equal(before.made.noise, after.made.noise)
        assert torch.equal(before.made.times, after.made.times)
        assert not before.made.recalled.any()
        assert not after.classes
        for row, is_recalled in enumerate(after.made.recalled.tolist()):
            recalled.append(is_recalled)
            assert (
                (after.made.weights[row] == 1).all()
                if is_recalled
                else torch.equal(before.made.weights[row], after.made.weights[row])
            )
        assert torch.equal(after.made.recalled, draw(found, base, asked, step).made.recalled)
    assert (before.made.weights == 0).any()
    assert sum(recalled) / len(recalled) == pytest.approx(0.2, abs=0.08)


@pytest.mark.parametrize("asked", [{"prior_weight": 5.0}, {"prior_share": 0.5}])
def test_a_prior_keeps_the_class_nearer_to_the_base(runs: Runs, asked: dict[str, float]) -> None:
    found, strays = families.find("sd15"), []
    for options in ({}, asked):
        run = runs(objective=options, class_word="dog", max_steps=20, learning_rate=3e-3, seed=8)
        live = Live(run, found, base_of(run), 20)
        for _ in range(20):
            live.step()
        judge = runs(objective={"prior_weight": 1.0}, class_word="dog", seed=99)
        judged = Live(judge, found, base_of(run)).job
        batches = [draw(found, live.base, judged, step) for step in range(4)]
        with live.applied():
            away = [
                objective.prior_loss(found, live.base, live.engine.layers, batch.made, batch.classes)
                for batch in batches
            ]
        strays.append(float(torch.cat(away).mean()))
    assert strays[1] < 0.5 * strays[0]


# ---- golden losses ------------------------------------------------------------------------------------------------

# As in test_training_families.py: losses of the first and the sixth step on the tiny base, with one option each.
GOLDEN = {
    ("sd15", "epsilon", "min_snr"): (0.411184, 1.005164),
    ("sd15", "v_prediction", "min_snr"): (0.376383, 0.009962),
    ("sdxl", "epsilon", "debiased"): (0.297256, 9.805404),
    ("z-image", "flow", "debiased"): (0.099384, 0.307448),
}


@pytest.mark.parametrize(("family", "prediction", "weighting"), list(GOLDEN))
def test_golden_weighted_loss(runs: Runs, family: str, prediction: str, weighting: str) -> None:
    run = runs(family, prediction=prediction, seed=1234, objective={"weighting": weighting, "noise_offset": 0.05})
    live = Live(run, families.find(family), base_of(run))
    losses = [live.step() for _ in range(6)]
    assert (losses[0], losses[5]) == pytest.approx(GOLDEN[family, prediction, weighting], rel=1e-3)


def test_plain_draws_weigh_nothing() -> None:
    made = Draw.plain(torch.ones(2, 4, 3, 3), torch.ones(2, 4, 3, 3), torch.zeros(2))
    assert made.weights.shape == (2, 1, 3, 3)
    assert (made.weights == 1).all()
    assert (made.priors == 0).all()
