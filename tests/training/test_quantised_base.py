"""A frozen base in 8 or 4 bits trains as its dequantised weights would, and everything else is as on any base."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.errors import BackendFailed
from tests.samples import paired
from tests.training.conftest import MemoryCheckpoints
from tests.training.test_engine import side_by_side
from training import families
from training.backends import resident
from training.backends.local import train
from training.engine.lora_layers import LoRALayers
from training.engine.randomness import generator
from training.families.family import Base, Condition, Where
from training.families.registry import trained_here
from training.families.weights import quantised
from training.families.weights.quantised import linears, weight_of
from training.lora import file as lora_file
from training.options import Quantisation, Ranks
from training.ports import TrainResult, TrainRun

Runs = Callable[..., TrainRun]
CPU = torch.device("cpu")
KINDS: tuple[Quantisation, ...] = ("8bit", "4bit")
# By how much what the denoiser says may differ, relative: measured 0.01 and 0.13 for single layers of random weights.
BOUNDS = {"8bit": 0.04, "4bit": 0.4}


@pytest.fixture(autouse=True)
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "_resident", None)


def loaded(run: TrainRun, kind: Quantisation, **given: Any) -> Base:
    where = Where(Path(run.base_model), CPU, torch.float32, quantisation=kind, **given)
    return families.find(run.spec.family).load(where)


def sample(run: TrainRun, base: Base) -> tuple[Tensor, Tensor, list[Condition]]:
    """Noisy latents, a time, and what the denoiser is told, of a run's first picture."""
    family = families.find(run.spec.family)
    (moments,) = family.encode_pictures(base, run.examples[:1])
    drawn = family.draw(base, moments.unsqueeze(0), generator(1, "test", 0))
    return family.mix(base, drawn), drawn.times, family.encode_captions(base, run.examples[:1])


@pytest.mark.parametrize(("family", "kind"), paired(trained_here(), KINDS, "quantised bases"))
def test_a_quantised_base_says_nearly_the_same_in_a_fraction_of_the_bytes(
    runs: Runs, family: str, kind: Quantisation
) -> None:
    run, found = runs(family), families.find(family)
    plain, small = loaded(run, "none"), loaded(run, kind)
    names = linears(plain.denoiser, found.quantised)
    assert names
    given = sample(run, plain)
    with torch.no_grad():
        text, nearly = (found.predict(base, *given) for base in (plain, small))
    error = ((text - nearly).norm() / text.norm()).item()
    assert 0 < error < BOUNDS[kind]
    for name, layer in names.items():
        weight: Any = small.denoiser.get_submodule(name).weight
        assert weight.numel() * weight.element_size() <= layer.weight.numel() * (1 if kind == "8bit" else 0.5)
        assert weight_of(small.denoiser.get_submodule(name)).shape == layer.weight.shape
    others = {id(layer) for layer in names.values()}
    for name, module in plain.denoiser.named_modules():
        if id(module) not in others and isinstance(module, nn.Linear | nn.Conv2d):
            assert torch.equal(module.weight, small.denoiser.get_submodule(name).weight), "the rest stays as it is"


@contextmanager
def dequantised(base: Base, layers: str) -> Iterator[None]:
    """Inside, plain linears with the same weights stand in place of the quantised ones."""
    before = {}
    for name, layer in linears_of(base.denoiser, layers).items():
        parent, _, last = name.rpartition(".")
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight = nn.Parameter(weight_of(layer).float(), requires_grad=False)
        plain.bias = layer.bias
        before[name] = layer
        setattr(base.denoiser.get_submodule(parent), last, plain)
    yield
    for name, layer in before.items():
        parent, _, last = name.rpartition(".")
        setattr(base.denoiser.get_submodule(parent), last, layer)


def linears_of(denoiser: nn.Module, layers: str) -> dict[str, Any]:
    kinds = ("Params4bit", "Int8Params")
    return {
        name: module
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear) and type(module.weight).__name__ in kinds
    }


def gradient(run: TrainRun, base: Base, *, dora: bool) -> Tensor:
    """The LoRA's gradient of one picture's loss, [P]."""
    family = families.find(run.spec.family)
    given = sample(run, base)
    layers = LoRALayers(base.denoiser, family.targets)
    layout = layers.layout("all", Ranks(4), dora=dora)
    vector = layout.begin(3, Ranks(4))
    vector[layout._parts[0] : layout._parts[0] + layout._parts[1]].normal_(0, 0.02, generator=generator(4, "up", 0))
    stack = vector.unsqueeze(0).requires_grad_()
    with layers.applying(layout.loras(stack, torch.ones(1, 1), torch.float32)):
        family.predict(base, *given).square().mean().backward()
    assert stack.grad is not None
    return stack.grad[0]


@pytest.mark.parametrize(
    ("family", "options"),
    paired(trained_here(), list(product(KINDS, (False, True))), "gradients of quantised bases"),
    ids=str,
)
def test_gradients_are_those_of_the_dequantised_weights(
    runs: Runs, family: str, options: tuple[Quantisation, bool]
) -> None:
    kind, dora = options
    run, found = runs(family), families.find(family)
    made = gradient(run, loaded(run, kind), dora=dora)
    base = loaded(run, kind)
    with dequantised(base, found.quantised):
        expected = gradient(run, base, dora=dora)
    assert expected.norm() > 0
    assert torch.allclose(made, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_resumes_byte_for_byte_and_stays_as_it_began(runs: Runs, kind: Quantisation) -> None:
    kept = MemoryCheckpoints()
    run = runs("z-image", quantise=kind, max_steps=10, every=1, checkpoints=kept)
    whole = train(run)
    assert whole.sha256 != train(runs("z-image", name="plain", max_steps=10)).sha256
    for asked in (kind, "auto"):
        kept.held = {step: data for step, data in kept.held.items() if step <= 5}
        resident._release()
        resumed = train(replace(run, quantise=asked))
        assert resumed.resumed_from == 5
        assert resumed.sha256 == whole.sha256


def test_a_checkpoint_of_another_quantisation_is_not_gone_on_with(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    kept = MemoryCheckpoints()
    run = runs(quantise="8bit", max_steps=10, every=1, checkpoints=kept)
    train(run)
    kept.held = {step: data for step, data in kept.held.items() if step <= 5}
    assert train(replace(run, quantise="none")).resumed_from == 0
    assert "restarts: its checkpoint was trained on a base in 8bit, but here it must be none" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_who_trains_beside_it_changes_nothing(runs: Runs, kind: Quantisation) -> None:
    mine: dict[str, Any] = {"slots": 2, "seed": 11, "max_steps": 8, "quantise": kind}
    alone = train(runs(name="alone", **mine))
    beside, _ = side_by_side(runs(name="beside", **mine), runs(name="o", slots=2, seed=3, max_steps=5, quantise=kind))
    assert isinstance(beside, TrainResult)
    assert beside.sha256 == alone.sha256


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_one_like_any_other(runs: Runs, kind: Quantisation) -> None:
    run = runs("sdxl", quantise=kind, adapter={"targets": "all", "dora": True})
    result = train(run)
    lora_file.check_lora_file(result.path.read_bytes(), family="sdxl", rank=run.spec.rank)
    assert result.metadata["imprint_base_quantisation"] == kind


def test_looking_without_a_gradient_does_not_change_how_a_base_trains(runs: Runs) -> None:
    """On some CPUs bitsandbytes packs 4-bit weights anew in such a pass; no gradient could pass them afterwards."""
    run = runs("z-image")
    fresh = gradient(run, loaded(run, "4bit"), dora=False)
    base = loaded(run, "4bit")
    with torch.no_grad():
        families.find("z-image").predict(base, *sample(run, base))
    assert torch.equal(gradient(run, base, dora=False), fresh)


def test_the_training_adapter_is_merged_before_and_taken_off_while_drawing(runs: Runs, tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    pair = chance.normal(size=(2, 64)).astype("f4"), chance.normal(size=(64, 2)).astype("f4")
    adapter = tmp_path / "adapter.safetensors"
    lora_file.write_file(adapter, lora_file.serialize_lora("z-image", {"layers.0.attention.to_q": pair}, 4.0, {}))
    run, found = runs("z-image"), families.find("z-image")
    plain, merged = loaded(run, "none"), loaded(run, "8bit", training_adapter=adapter)
    given = sample(run, plain)
    with torch.no_grad():
        text, changed = (found.predict(base, *given) for base in (plain, merged))
        with found.as_used(merged):
            used = found.predict(merged, *given)
    assert (used - text).norm() < 0.2 * (changed - text).norm()


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_that_made_room_trains_as_before(runs: Runs, kind: Quantisation) -> None:
    run = runs()
    fresh = gradient(run, loaded(run, kind), dora=False)
    base = loaded(run, kind)
    with torch.no_grad():
        families.find("sd15").predict(base, *sample(run, base))
    with base.parked():
        assert base.is_parked
        for module in base.denoiser.modules():
            assert getattr(getattr(module, "state", None), "CB", None) is None, "nothing else holds the weights"
    assert torch.equal(gradient(run, base, dora=False), fresh)


def test_without_the_library_it_is_refused_by_name(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "is_available", lambda: False)
    with pytest.raises(BackendFailed, match="needs bitsandbytes"):
        train(replace(runs(), quantise="8bit"))
