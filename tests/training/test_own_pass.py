"""Our own pass through a UNet says what diffusers' module says, gradients too; what it does not know it leaves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from tests.training.live import Live
from training import families
from training.engine import unet as own
from training.engine.adapters import Ports
from training.engine.draw import draw
from training.engine.step import WARM_STEPS
from training.engine.unet.known import why_unknown
from training.engine.unet.network import Network
from training.families.family import Base, Where
from training.families.sd15 import TARGETS
from training.ports import TrainRun

lib: Any = diffusers
Runs = Callable[..., TrainRun]

SMALL: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
ADDED = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64}
SHAPES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "plain": ({}, (8, 8)),
    "wide": ({}, (4, 12)),
    "odd sizes": ({}, (7, 9)),
    "linear projections": ({"use_linear_projection": True, "attention_head_dim": (2, 8)}, (8, 8)),
    "deep": ({"layers_per_block": 2, "transformer_layers_per_block": (1, 2)}, (8, 8)),
    "told sizes": (ADDED, (8, 8)),
}


def unet_of(**given: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return lib.UNet2DConditionModel(**{**SMALL, **given}).requires_grad_(False).eval()


def passed(network: Any, unet: Any, ports: Ports, size: tuple[int, int], slots: int, **adapter: Any) -> list[Tensor]:
    """What `network` says of two samples to a slot, and the gradient of that in the LoRAs."""
    chance = torch.Generator().manual_seed(3)
    layout = ports.layout(adapter.get("targets", "attention"), 4, dora=adapter.get("dora", False))
    begun = torch.stack([layout.begin(seed, 4) for seed in range(slots)])
    stack = (begun + 0.02 * torch.randn(begun.shape, generator=chance)).requires_grad_()
    sample = torch.randn(2 * slots, 4, *size, generator=chance)
    context = torch.randn(2 * slots, 5, 24, generator=chance)
    more = {}
    if unet.config.addition_embed_type is not None:
        ids = torch.arange(12.0 * slots).view(-1, 6)
        more = {"added_cond_kwargs": {"text_embeds": torch.randn(2 * slots, 16, generator=chance), "time_ids": ids}}
    ports.pairs = layout.pairs(stack, torch.full((slots, 1), 2.0), torch.float32)
    said = network(sample, torch.arange(2 * slots) * 100, context, return_dict=False, **more)[0]
    said.pow(2).mean().backward()
    ports.pairs = None
    assert stack.grad is not None
    return [said.detach(), stack.grad]


def agree(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).norm() <= 5e-6 * other.norm()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slots", [1, 3])
def test_says_what_diffusers_says(shape: str, slots: int) -> None:
    given, size = SHAPES[shape]
    unet = unet_of(**given)
    ports = Ports(unet, TARGETS)
    theirs = passed(unet, unet, ports, size, slots)
    agree(passed(Network(unet, ports, 1000), unet, ports, size, slots), theirs)


@pytest.mark.parametrize("adapter", [{"targets": "all"}, {"dora": True}, {"targets": "all", "dora": True}])
def test_every_kind_of_port_is_known(adapter: dict[str, Any]) -> None:
    unet = unet_of()
    ports = Ports(unet, TARGETS)
    theirs = passed(unet, unet, ports, (8, 8), 2, **adapter)
    agree(passed(Network(unet, ports, 1000), unet, ports, (8, 8), 2, **adapter), theirs)


def test_reckoning_blocks_anew_changes_no_bit() -> None:
    unet = unet_of()
    ports = Ports(unet, TARGETS)
    network = Network(unet, ports, 1000)
    kept = passed(network, unet, ports, (8, 8), 2)
    unet.enable_gradient_checkpointing()
    for mine, other in zip(passed(network, unet, ports, (8, 8), 2), kept, strict=True):
        assert torch.equal(mine, other)


def test_without_loras_it_is_the_frozen_network() -> None:
    unet = unet_of()
    network = Network(unet, Ports(unet, TARGETS), 1000)
    sample, times, context = torch.randn(2, 4, 8, 8), torch.tensor([1, 999]), torch.randn(2, 5, 24)
    with torch.no_grad():
        assert torch.allclose(network(sample, times, context)[0], unet(sample, times, context).sample, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"resnet_time_scale_shift": "scale_shift"}, "time_embedding_norm 'scale_shift'"),
        ({"only_cross_attention": True}, "only_cross_attention True"),
        ({"class_embed_type": "timestep"}, "class_embed_type 'timestep'"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "UNetMidBlock2DSimpleCrossAttn"),
        ({"upcast_attention": True}, "upcast_attention True"),
        ({"act_fn": "gelu"}, "act_fn 'gelu'"),
        ({"dropout": 0.1}, "dropout"),
    ],
)
def test_what_is_not_known_is_left_to_diffusers(change: dict[str, Any], reason: str) -> None:
    assert reason in (why_unknown(unet_of(**change)) or "")
    assert why_unknown(nn.Linear(1, 1)) == "Linear"


def test_a_base_with_unknown_parts_trains_through_diffusers(runs: Runs) -> None:
    run, found = runs(), families.find("sd15")
    base = found.load(Where(run_folder(run), torch.device("cpu"), torch.float32))
    live = Live(run, found, base)
    assert base.network is base.own
    base.own = None
    base.denoiser.mid_block.resnets[0].output_scale_factor = 2.0
    own.attach(base, live.engine.ports)
    assert base.network is base.denoiser
    assert live.step() > 0


def run_folder(run: TrainRun) -> Path:
    return Path(run.base_model)


# ---- recorded steps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_recorded_steps_are_the_steps(runs: Runs, share: float) -> None:
    """A GPU repeats a recording over fixed tensors; here it is repeated by calling what was to be recorded.

    Steps in which something is recalled are other operations: they have a recording of their own.
    """
    weights = []
    for is_recorded in (False, True):
        run, found = runs(seed=5, max_steps=20, objective={"prior_share": share}), families.find("sd15")
        base: Base = found.load(Where(run_folder(run), torch.device("cpu"), torch.float32))
        live = Live(run, found, base, total=20, slots=2)
        repeats: list[int] = []

        def record(work: Callable[[], Tensor], repeats: list[int] = repeats) -> tuple[Callable[[], None], Tensor]:
            means = torch.zeros(2)

            def repeat() -> None:
                repeats.append(1)
                means.copy_(work())

            return repeat, means

        live.cohort._step.record = record if is_recorded else None
        recalls = [bool(draw(found, base, live.seat, step).made.recalled.any()) for step in range(WARM_STEPS + 9)]
        losses = [live.step() for _ in recalls]
        weights.append((live.cohort.stack.masters.detach().clone(), losses))
        kinds = {kind for kind in recalls if recalls.count(kind) > WARM_STEPS}
        assert len(kinds) == (2 if share else 1)
        assert len(live.cohort._step.recorded) == (len(kinds) if is_recorded else 0)
        assert len(repeats) == (len(recalls) - len(kinds) * WARM_STEPS if is_recorded else 0)
    assert torch.equal(weights[0][0], weights[1][0])
    assert weights[0][1] == weights[1][1]


def test_a_step_that_cannot_be_recorded_is_made_all_the_same(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    run, found = runs(), families.find("sd15")
    live = Live(run, found, found.load(Where(run_folder(run), torch.device("cpu"), torch.float32)), total=20)

    def fails(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    live.cohort._step.record = fails
    for _ in range(WARM_STEPS + 2):
        live.step()
    assert live.seat.step == WARM_STEPS + 2
    assert caplog.text.count("cannot be recorded as a CUDA graph") == 1


@pytest.mark.gpu
def test_on_a_gpu_steps_are_recorded(runs: Runs) -> None:
    run, found = runs(seed=5, max_steps=20), families.find("sd15")
    live = Live(run, found, found.load(Where(run_folder(run), torch.device("cuda"), torch.bfloat16)), total=20, slots=2)
    for _ in range(WARM_STEPS + 3):
        live.cohort.step()
    live.cohort.settle()
    assert live.cohort._step.record is not None, "recording failed; the log says why"
    assert len(live.cohort._step.recorded) == 1
    assert all(loss == loss for _, loss in live.seat.losses)
