"""What moves the weights, against torch, diffusers and the papers; and jobs that ask for different things in a step."""

from collections.abc import Callable
from math import sqrt
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from tests.training.conftest import MemoryCheckpoints
from tests.training.test_engine import side_by_side
from training.backends import resident
from training.backends.local import train
from training.engine.layout import Span
from training.engine.optimizers import stack as stack_module
from training.engine.optimizers.adamw8bit import AdamW8bit, codes
from training.engine.optimizers.by_name import OPTIMIZERS
from training.engine.optimizers.prodigy import Prodigy
from training.engine.optimizers.schedule import rate_at
from training.engine.optimizers.stack import AdamW, OptimizerParams, Stack
from training.lora.safetensor import unpack
from training.ports import TrainResult, TrainRun
from training.spec import TrainSpec

Runs = Callable[..., TrainRun]
SIZE, EDGE = 640, 200  # of a row, and where the numbers of B begin
SPANS = [Span(0, EDGE, is_up=False, is_text=False), Span(EDGE, SIZE, is_up=True, is_text=False)]
TERMS = (
    OptimizerParams(rate=1e-3, scales=(1.0, 1.0)),
    OptimizerParams(rate=5e-2, scales=(1.0, 1.0), ratio=4.0, decay=0.1, clip=0.5),
    OptimizerParams(rate=1e-4, scales=(1.0, 1.0), decay=0.0, clip=100.0, averaging=0.9),
)


def stack_of(kind: type[Stack], terms: tuple[OptimizerParams, ...] = TERMS) -> Stack:
    """A stack with a row of numbers for each of `terms`."""
    chance = torch.Generator().manual_seed(1)
    stack = kind(len(terms), SimpleNamespace(size=SIZE, spans=SPANS), torch.device("cpu"))  # type: ignore[arg-type]
    for slot, asked in enumerate(terms):
        stack.seat(slot, asked, torch.randn(SIZE, generator=chance))
    return stack


def gradients(steps: int, rows: int = len(TERMS)) -> list[Tensor]:
    chance = torch.Generator().manual_seed(2)
    return [torch.randn(rows, SIZE, generator=chance) * 10.0 ** (step % 3 - 1) for step in range(steps)]


def moved(stack: Stack, gradient: Tensor) -> Tensor:
    """The masters after one more step."""
    stack.masters.grad = gradient.clone()
    stack.set_rates([asked.rate for asked in TERMS[: len(gradient)]])
    stack.step()
    stack.average()
    return stack.masters.detach().clone()


def spec(**given: Any) -> TrainSpec:
    return TrainSpec.model_validate({"base_model": "sd15", "trigger_word": "sks dog", "seed": 1, **given})


# ---- one row is what others make of it ---------------------------------------------------------------------------


def test_adamw_clipping_and_two_rates_are_those_of_torch() -> None:
    stack = stack_of(AdamW)
    rows = [[nn.Parameter(part.clone()) for part in (row[:EDGE], row[EDGE:])] for row in stack.masters.detach()]
    oracles = [
        torch.optim.AdamW(
            [{"params": [row[0]], "lr": asked.rate}, {"params": [row[1]], "lr": asked.rate * asked.ratio}],
            weight_decay=asked.decay,
        )
        for row, asked in zip(rows, TERMS, strict=True)
    ]
    for gradient in gradients(20):
        got = moved(stack, gradient)
        for row, oracle, asked, part in zip(rows, oracles, TERMS, gradient, strict=True):
            row[0].grad, row[1].grad = part[:EDGE].clone(), part[EDGE:].clone()
            torch.nn.utils.clip_grad_norm_(row, asked.clip)
            oracle.step()
    for row, held in zip(rows, got, strict=True):
        assert torch.allclose(held, torch.cat([part.detach() for part in row]), rtol=1e-5, atol=1e-6)


def test_the_average_is_that_of_diffusers() -> None:
    stack = stack_of(AdamW)
    row = nn.Parameter(stack.masters.detach()[2].clone())
    oracle = EMAModel([row], decay=TERMS[2].averaging)
    for gradient in gradients(30):
        row.data.copy_(moved(stack, gradient)[2])
        oracle.step([row])
    assert torch.allclose(stack.effective_weights(2), oracle.shadow_params[0], rtol=1e-5, atol=1e-7)
    assert not torch.equal(stack.effective_weights(2), stack.masters[2])
    assert torch.equal(stack.effective_weights(0), stack.masters[0])  # who asks for none has none


def prodigy(weights: np.ndarray, slopes: list[np.ndarray], rate: float, decay: float, clip: float) -> np.ndarray:
    """arXiv 2306.06101, algorithm 4 with Adam's bias correction, in float64."""
    x0 = x = weights.astype(np.float64)
    m = v = s = np.zeros_like(x)
    d, r, one, two = 1e-6, 0.0, 0.9, 0.999
    for k, slope in enumerate(slopes):
        g = slope.astype(np.float64)
        g = g * min(1.0, clip / (np.linalg.norm(g) + 1e-6))
        size = d * rate * sqrt(1 - two ** (k + 1)) / (1 - one ** (k + 1))
        r = sqrt(two) * r + d / 1e-6 * size * (g @ (x0 - x))
        s = sqrt(two) * s + d / 1e-6 * d * g
        m = one * m + (1 - one) * d * g
        v = two * v + (1 - two) * d * d * g * g
        d = max(d, r / np.abs(s).sum())
        x = (1 - decay * size) * x - size * m / (np.sqrt(v) + d * 1e-8)
    return x


def test_prodigy_is_the_papers() -> None:
    terms = (
        OptimizerParams(rate=1.0, scales=(1.0, 1.0), decay=0.0),
        OptimizerParams(rate=0.7, scales=(1.0, 1.0), decay=1e-2, clip=5.0),
    )
    stack = stack_of(Prodigy, terms)
    stack.masters.data.mul_(1e-3)  # its first steps are of 1e-6, which float32 does not see beside 1
    stack.starts.copy_(stack.masters.detach())  # type: ignore[attr-defined]
    before = stack.masters.detach().clone()
    # Gradients of a bowl around a far point, so that there is a way to go.
    far = torch.linspace(-3, 3, SIZE)
    found: list[list[np.ndarray]] = [[], []]
    for _ in range(60):
        gradient = (stack.masters.detach() - far) * 0.01
        for row, slopes in zip(gradient, found, strict=True):
            slopes.append(row.numpy().copy())
        stack.masters.grad = gradient
        stack.set_rates([asked.rate for asked in terms])
        stack.step()
    for slot, asked in enumerate(terms):
        wanted = prodigy(before[slot].numpy(), found[slot], asked.rate, asked.decay, asked.clip)
        way = np.abs(wanted - before[slot].numpy()).max()
        assert np.abs(stack.masters.detach()[slot].numpy() - wanted).max() < 1e-3 * way
    assert stack.distances[0] > 1e-3  # type: ignore[attr-defined]  # it found a rate to go at


def test_moments_of_8_bits_are_the_nearest_codes() -> None:
    """Against the paper's algorithm, a block and a number at a time."""
    signed, unsigned = codes(signed=True).numpy(), codes(signed=False).numpy()
    assert len(signed) == len(unsigned) == 256
    assert (signed.min(), signed.max()) == pytest.approx((-0.99296875, 1.0))
    assert (unsigned.min(), unsigned.max()) == (0.0, 1.0)
    asked = TERMS[1]
    stack = stack_of(AdamW8bit, (asked,))
    weights = stack.masters.detach()[0].numpy().astype(np.float64)
    moments = [np.zeros(SIZE), np.zeros(SIZE)]
    for step, gradient in enumerate(gradients(20, 1)):
        stack.masters.grad = gradient.clone()
        stack.set_rates([asked.rate])
        stack.step()
        g = gradient[0].numpy().astype(np.float64)
        g *= min(1.0, asked.clip / np.linalg.norm(g))
        rates = np.where(np.arange(SIZE) < EDGE, asked.rate, asked.rate * asked.ratio)
        m, v = 0.9 * moments[0] + 0.1 * g, 0.999 * moments[1] + 0.001 * g * g
        change = m / (np.sqrt(v) / sqrt(1 - 0.999 ** (step + 1)) + 1e-8)
        weights = (1 - rates * asked.decay) * weights - rates / (1 - 0.9 ** (step + 1)) * change
        moments = [rounded(m, signed), rounded(v, unsigned)]
    # Where float32 falls on the other side of a midpoint, one code differs.
    close = np.abs(stack.masters.detach()[0].numpy() - weights) < 1e-4
    assert close.mean() > 0.98


def rounded(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    made = np.empty_like(values)
    for begin in range(0, len(values), 256):
        block = values[begin : begin + 256]
        largest = np.abs(block).max()
        nearest = np.abs(block[:, None] / largest - table[None].astype(np.float64)).argmin(1)
        made[begin : begin + 256] = table[nearest] * largest
    return made


def test_moments_of_8_bits_learn_nearly_as_well() -> None:
    exact, coarse = (stack_of(kind) for kind in (AdamW, AdamW8bit))
    before = exact.masters.detach().clone()
    for gradient in gradients(50):
        wanted, got = moved(exact, gradient), moved(coarse, gradient)
    assert 0 < (got - wanted).norm() < 0.1 * (wanted - before).norm()


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_behind_the_warm_up_rates_are_those_of_diffusers(schedule: str, warmup: int) -> None:
    made = spec(learning_rate=1e-2, optimization={"schedule": schedule, "warmup_steps": warmup})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-2)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    oracle = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=40)
    wanted = []
    for _ in range(40):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        oracle.step()
    got = [rate_at(made, step, 40) for step in range(40)]
    assert got[warmup:] == pytest.approx(wanted[warmup:])
    assert got[:warmup] == pytest.approx(wanted[1 : warmup + 1])  # one step ahead: the first one learns too
    assert min(got) > 0


def test_rows_move_as_if_they_were_alone() -> None:
    """Bit for bit, whatever the neighbours ask for, in whichever slot, and after a move to another stack."""
    steps = gradients(12, 4)
    for kind in OPTIMIZERS.values():
        terms = [*TERMS, OptimizerParams(rate=1e-2, scales=(1.0, 1.0))]
        if kind is Prodigy:
            terms = [OptimizerParams(rate=one.rate * 10, scales=(1.0, 1.0), averaging=one.averaging) for one in terms]
        layout: Any = SimpleNamespace(size=SIZE, spans=SPANS)
        start = torch.randn(SIZE, generator=torch.Generator().manual_seed(3))

        def run(slot: int, beside: bool, move: bool, kind: Any = kind, terms: Any = terms, layout: Any = layout,
                start: Tensor = start) -> Tensor:  # fmt: skip
            stack = kind(4, layout, torch.device("cpu"))
            stack.seat(slot, terms[2], start)
            others = [place for place in range(4) if place != slot] if beside else []
            for place, asked in zip(others, [terms[0], terms[1], terms[3]], strict=False):
                stack.seat(place, asked, start * place)
            rates = [terms[2].rate if place == slot else 0.1 * (place in others) for place in range(4)]
            for step, gradient in enumerate(steps):
                if move and step == 5:
                    other = kind(4, layout, torch.device("cpu"))
                    for place in range(4):
                        other.copy(3 - place, stack, place)
                    stack, slot, rates = other, 3 - slot, rates[::-1]
                stack.masters.grad = gradient * 0
                stack.masters.grad[slot] = gradient[0]
                for place in others if not move else []:
                    stack.masters.grad[place] = gradient[1] * place
                stack.set_rates(rates)
                stack.step()
                stack.average()
            return stack.effective_weights(slot)

        alone = run(0, beside=False, move=False)
        assert torch.equal(run(2, beside=True, move=False), alone), kind
        assert torch.equal(run(1, beside=True, move=True), alone), kind


# ---- through a training ------------------------------------------------------------------------------------------


MIXED: list[dict[str, Any]] = [
    {"schedule": "cosine", "warmup_steps": 3, "ema_decay": 0.9},
    {"schedule": "linear", "loraplus_ratio": 4.0},
    {"weight_decay": 0.0, "max_grad_norm": 0.1},
    {},
]


def test_a_jobs_bytes_do_not_depend_on_what_others_ask_for(runs: Runs) -> None:
    mine: dict[str, Any] = {"slots": 4, "seed": 11, "max_steps": 14, "optimization": MIXED[0]}
    alone = train(runs(name="alone", **mine))
    others = [runs(name=f"o{n}", slots=4, seed=n, max_steps=6 * n, optimization=MIXED[n]) for n in (1, 2, 3)]
    other_kind = runs(name="other", slots=4, max_steps=8, optimizer="prodigy", learning_rate=1.0)
    *_, last = side_by_side(*others, other_kind, runs(name="last", **mine))
    assert isinstance(last, TrainResult)
    assert last.sha256 == alone.sha256


@pytest.mark.parametrize(
    "given",
    [
        {"optimization": MIXED[0]},
        {"optimizer": "adamw8bit", "optimization": MIXED[1]},
        {"optimizer": "prodigy", "learning_rate": 1.0, "optimization": MIXED[0]},
        {"optimizer": "adamw8bit", "adapter": {"targets": "all", "dora": True}},
    ],
    ids=["average", "8 bits", "prodigy", "dora in 8 bits"],
)
def test_whatever_moves_it_a_training_goes_on_byte_identical(runs: Runs, given: dict[str, Any]) -> None:
    given = {"max_steps": 7, "every": 1, **given}
    kept = MemoryCheckpoints()
    whole = train(runs(name="whole", checkpoints=kept, **given))
    kept.held = {step: data for step, data in kept.held.items() if step <= 5}
    resident._resident = None
    again = train(runs(name="again", checkpoints=kept, **given))
    assert again.resumed_from == 5
    assert again.sha256 == whole.sha256
    plain = train(runs(name="plain", max_steps=7, learning_rate=1e-3))
    assert plain.sha256 != whole.sha256


def test_the_file_holds_the_average(runs: Runs) -> None:
    """At a decay of 0.99 over 10 steps the average is the younger one: (1 + k) / (10 + k) leads it."""
    kept = MemoryCheckpoints()
    result = train(runs(max_steps=10, checkpoints=kept, optimization={"ema_decay": 0.99}))
    tensors, _ = unpack(kept.held[10])
    module = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    held = unpack(result.path.read_bytes())[0][f"lora_unet_{module.replace('.', '_')}.lora_up.weight"].elements
    assert np.array_equal(held, tensors[f"average/{module}.up"].elements)
    assert not np.array_equal(held, tensors[f"weights/{module}.up"].elements)


def test_prodigys_rate_is_1_where_a_request_is_silent() -> None:
    assert spec(optimizer="prodigy").learning_rate == 1.0
    assert spec(optimizer="adamw8bit").learning_rate == spec().learning_rate == 1e-4


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"learning_rate": 0.5}, "learning_rate"),
        ({"optimizer": "prodigy", "learning_rate": 2.0}, "learning_rate"),
        ({"optimizer": "prodigy", "learning_rate": 1e-4}, "multiplies the rate that prodigy finds"),
        ({"optimizer": "prodigy", "optimization": {"loraplus_ratio": 4}}, "loraplus_ratio"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        spec(**given)


# ---- float16 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_row_that_overflows_stays_and_halves_its_scale_and_no_other_does(kind: str) -> None:
    plain, scaled = stack_of(OPTIMIZERS[kind]), stack_of(OPTIMIZERS[kind])
    scaled.is_scaled = True
    for number, gradient in enumerate(gradients(4)):
        rows = gradient * scaled.loss_scales
        before = scaled.masters.detach().clone()
        if number == 2:
            rows[1, 7] = float("inf")
        moved(scaled, rows)
        moved(plain, gradient)
        if number == 2:
            assert torch.equal(scaled.masters[1], before[1])
    assert scaled.loss_scales.squeeze(1).tolist() == [2.0**16, 2.0**15, 2.0**16]
    for row in (0, 2):
        torch.testing.assert_close(scaled.masters[row], plain.masters[row])
    assert scaled.updates.squeeze(1).tolist() == [4.0, 3.0, 4.0]


def test_a_loss_scale_grows_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_module, "LOSS_SCALE_GROWS_AFTER", 3)
    stack = stack_of(AdamW)
    stack.is_scaled = True
    for gradient in gradients(4):
        moved(stack, gradient * stack.loss_scales)
    assert stack.loss_scales.squeeze(1).tolist() == [2.0**17] * 3
    assert stack.finite_steps.squeeze(1).tolist() == [1.0] * 3


def test_float16_trains_resumes_exactly_and_leaves_neighbours_alone(runs: Runs) -> None:
    mine: dict[str, Any] = {"slots": 2, "precision": "float16", "max_steps": 7, "every": 1, "seed": 11}
    kept = MemoryCheckpoints()
    whole = train(runs(name="whole", checkpoints=kept, **mine))
    exact = train(runs(name="exact", **{**mine, "precision": "float32"}))
    assert whole.final_loss == pytest.approx(exact.final_loss, rel=1e-2)
    assert whole.sha256 != exact.sha256
    kept.held = {step: data for step, data in kept.held.items() if step <= 5}
    resumed = train(runs(name="resumed", checkpoints=kept, **mine))
    assert (resumed.resumed_from, resumed.sha256) == (5, whole.sha256)
    beside, _ = side_by_side(
        runs(name="beside", **mine),
        runs(name="other", **{**mine, "seed": 3, "alpha": 256.0}),
    )
    assert isinstance(beside, TrainResult)
    assert beside.sha256 == whole.sha256
