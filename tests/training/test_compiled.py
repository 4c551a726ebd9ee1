"""Compiled steps are the steps: the same numbers to rounding, a job's own whoever is beside it, resumed to the bit.

Most of it runs with torch's backend `aot_eager`, which does all that compiling is but the last: functions are traced,
guarded and taken apart, and run by torch's operations. Code itself, which takes seconds a function, is made of five.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from tests.training.conftest import MemoryCheckpoints
from tests.training.live import Live
from tests.training.test_own_pass import SHAPES, agree, passed, run_folder, unet_of
from training import families
from training.backends.local import train
from training.engine import compiler as compiling
from training.engine import optimizer
from training.engine.adapters import Ports
from training.engine.compiler import Compiler
from training.engine.optimizer import Stack, Terms
from training.engine.stacks import STACKS
from training.engine.unet import fused
from training.engine.unet.network import Network
from training.families.family import Where
from training.families.sd15 import TARGETS
from training.ports import TrainRun

Runs = Callable[..., TrainRun]


@pytest.fixture
def lean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compile all the way to the code, but for that."""
    monkeypatch.setattr(compiling, "_found", {})
    torch.compiler.set_default_backend("aot_eager")
    yield
    torch.compiler.set_default_backend(None)


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Compile to code, in a folder of this test's own."""
    monkeypatch.setattr(compiling, "_found", {})
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "code"))
    yield tmp_path / "code"
    torch._dynamo.reset()


# ---- the same numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slots", [1, 3])
def test_what_is_compiled_says_what_diffusers_says(shape: str, slots: int) -> None:
    given, size = SHAPES[shape]
    unet = unet_of(**given)
    ports = Ports(unet, TARGETS)
    theirs = passed(unet, unet, ports, size, slots)
    agree(passed(Network(unet, ports, 1000, fused.kit(lambda made: made)), unet, ports, size, slots), theirs)


@pytest.mark.usefixtures("lean")
def test_the_pass_can_be_compiled() -> None:
    unet = unet_of()
    ports = Ports(unet, TARGETS)
    theirs = passed(unet, unet, ports, (8, 8), 2, targets="all")
    compiler = Compiler()
    counters.clear()
    network = Network(unet, ports, 1000, fused.kit(compiler))
    for _ in range(2):
        agree(passed(network, unet, ports, (8, 8), 2, targets="all"), theirs)
    kinds = sum(len(made._made) for made in compiler._made.values())
    assert counters["stats"]["unique_graphs"] == kinds, "one graph of each kind, and none in the second step"
    unet.enable_gradient_checkpointing()
    agree(passed(network, unet, ports, (8, 8), 2, targets="all"), theirs)


def moved(kind: type[Stack], compiler: Compiler | None) -> Tensor:
    """The masters of two rows after three updates."""
    layout = Ports(unet_of(), TARGETS).layout("attention", 4)
    stack = kind(2, layout, torch.device("cpu"))
    if compiler is not None:
        stack.compile(compiler)
    chance = torch.Generator().manual_seed(4)
    for slot in range(2):
        stack.seat(slot, Terms(1e-3, 1.0, ratio=1.0 + slot, clip=0.5 + 100 * slot), layout.begin(slot, 4))
    for _ in range(3):
        stack.set_rates([1e-3, 2e-3])
        stack.masters.grad = torch.randn(stack.masters.shape, generator=chance)
        stack.step()
    return stack.masters.detach()


@pytest.mark.usefixtures("lean")
@pytest.mark.parametrize("kind", STACKS)
def test_the_update_can_be_compiled(kind: str) -> None:
    torch.testing.assert_close(moved(STACKS[kind], Compiler()), moved(STACKS[kind], None), rtol=1e-5, atol=1e-7)


def in_slots(chance: torch.Generator, order: list[int]) -> dict[str, list[Any]]:
    """Arguments for the functions that add up numbers; every slot has numbers of its own, and stands where told."""

    def drawn(*shape: int) -> Tensor:
        return torch.stack([torch.randn(shape, generator=chance) for _ in range(4)])[order]

    def picture() -> Tensor:
        return drawn(16, 6, 6).contiguous(memory_format=torch.channels_last)

    weight, bias = torch.linspace(0.5, 2, 16), torch.linspace(-1, 1, 16)
    mean, spread = drawn(1, 4, 1), drawn(1, 4, 1).abs()
    one = torch.ones(len(order), 1, dtype=torch.float64)
    return {
        "group_norm": [picture(), drawn(16, 1, 1), weight, bias, 4, 1e-5, True],
        "group_norm_back": [picture(), picture(), picture(), None, mean, spread, weight, bias, True],
        "geglu_back": [drawn(3, 16).flatten(0, 1), drawn(3, 32).flatten(0, 1)],
        "_clip_at_once": [drawn(192), torch.full((len(order), 1), 0.1)],
        "_adamw": [drawn(192), drawn(192), drawn(192), drawn(192).abs(), 2 * one, 1e-3 * one, one, one, 128],
    }


def told(compile_: Callable[..., Any], name: str, order: list[int]) -> list[Tensor]:
    """What a function gives, by slots: what it says, or what it changed."""
    given = in_slots(torch.Generator().manual_seed(1), order)[name]
    made = compile_(getattr(fused, name, None) or getattr(optimizer, name))(*given)
    found = [one for one in given if isinstance(one, Tensor)] if made is None else made
    found = [found] if isinstance(found, Tensor) else found
    return [one.unflatten(0, (4, -1)) for one in found if len(one) % 4 == 0 and one.ndim > 1]


def test_code_gives_a_slot_its_bits_wherever_it_stands_and_is_kept(code: Path) -> None:
    compiler, straight, turned = Compiler(), [0, 1, 2, 3], [2, 0, 3, 1]
    names = list(in_slots(torch.Generator(), straight))
    for name in names:
        plainly = told(lambda function: function, name, straight)
        assert plainly, name
        for wanted, mine, other in zip(
            plainly, told(compiler, name, straight), told(compiler, name, turned), strict=True
        ):
            torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)
            assert torch.equal(mine[turned], other), name
    # As a process that comes later: nothing is known to torch but what lies in the folder.
    assert any(code.rglob("*.so"))
    torch._dynamo.reset()
    counters.clear()
    for name in names:
        told(Compiler(), name, turned)
    assert counters["inductor"]["fxgraph_cache_hit"] == len(names)
    assert counters["inductor"]["fxgraph_cache_miss"] == 0


# ---- trainings ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("lean")
def test_a_compiled_training_resumes_exactly_and_stays_it(
    runs: Runs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = MemoryCheckpoints()
    there = tmp_path / "compiled"
    run = runs(max_steps=12, every=1, checkpoints=kept, compiled=there)
    whole = train(run)
    assert compiling._found["cpu"] is not None
    assert there.is_dir()
    for asked, begun_at in ((there, 5), (None, 0)):
        kept.held = {step: data for step, data in kept.held.items() if step <= 5}
        resumed = train(runs(max_steps=12, every=1, checkpoints=kept, compiled=asked))
        assert resumed.resumed_from == begun_at
        assert (resumed.sha256 == whole.sha256) is (asked is not None)
    assert "begins anew: its checkpoint was trained with compiled code, and IMPRINT_COMPILE is off" in caplog.text
    # The other way round: one that began without goes on without, whatever is asked for since.
    kept.held = {step: data for step, data in kept.held.items() if step <= 5}
    assert train(run).sha256 == resumed.sha256


@pytest.mark.usefixtures("lean")
def test_whoever_cannot_compile_trains_without(
    runs: Runs, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: Any) -> Any:
        raise RuntimeError("No working C++ compiler found")

    torch.compiler.set_default_backend(no_compiler)
    plain = train(runs(name="plain"))
    for name in ("first", "second"):
        assert train(runs(name=name, compiled=tmp_path / "compiled")).sha256 == plain.sha256
    assert caplog.text.count("this machine cannot compile") == 1


@pytest.mark.usefixtures("lean")
def test_a_function_that_cannot_be_compiled_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def no_room(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    torch.compiler.set_default_backend(no_room)
    x = torch.randn(4, 8)
    made = Compiler()(fused.geglu)
    for _ in range(2):
        assert torch.equal(made(x), fused.geglu(x))
    assert caplog.text.count("geglu is not compiled for these shapes") == 1


@pytest.mark.gpu
def test_on_a_gpu_compiled_steps_are_recorded(runs: Runs, tmp_path: Path) -> None:
    run, found = runs(seed=5, max_steps=20), families.find("sd15")
    device = torch.device("cuda")
    compiler = compiling.compiler(tmp_path / "compiled", device)
    assert compiler is not None, "the log says why"
    weights = []
    for chosen in (None, compiler):
        base = found.load(Where(run_folder(run), device, torch.float32))
        live = Live(run, found, base, total=20, slots=2, compiler=chosen)
        for _ in range(7):
            live.cohort.step()
        live.cohort.settle()
        assert len(live.cohort._step.recorded) == 1
        weights.append(live.cohort.stack.masters.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-5)
