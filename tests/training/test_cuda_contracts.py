"""What CUDA demands of a step and a CPU does not check: no kernel called past PyTorch's functions, nothing read by the
host inside a step, and the same memory in every repetition of it.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.samples import paired, sample
from tests.training.live import Live
from tests.training.test_engine import base_of
from training import families
from training.engine.recorder import Recorder
from training.engine.step import WARM_STEPS
from training.families.family import Base
from training.ports import TrainRun

Runs = Callable[..., TrainRun]
aten = torch.ops.aten

# Each makes the host wait for the device, or copies from memory of the host: both end a capture.
HOST_READS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten.lift_fresh}
# Kernels with rules of their own on each device; `torch.nn.functional` keeps to them.
KERNELS = {torch.native_group_norm, torch.native_layer_norm, torch.native_batch_norm, torch.cudnn_convolution}


class Refused(RuntimeError):
    """CUDA would not do this."""


class NoDirectKernels(TorchFunctionMode):
    """Refuses kernels that are called past the functions that know what a device demands, such as layouts."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, OpOverload | OpOverloadPacket) or func in KERNELS:
            raise Refused(f"{func} is called directly")
        return func(*args, **(kwargs or {}))


class AsInAGraph(TorchDispatchMode):
    """Refuses what a capture refuses, and notes the memory that the step reads and has not made itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: set[int] = set()
        self._made: dict[int, Tensor] = {}  # held, so that no memory is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in HOST_READS or _picks_by_mask(func, args):
            raise Refused(f"{func} inside a step")
        for one in tree_leaves((args, kwargs)):
            if isinstance(one, Tensor) and one.numel() and one.untyped_storage().data_ptr() not in self._made:
                self.inputs.add(one.untyped_storage().data_ptr())
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and (pointer := one.untyped_storage().data_ptr()) not in self.inputs:
                self._made[pointer] = one
        return result


def _picks_by_mask(func: Any, args: Any) -> bool:
    """Whether the host has to know how many elements a mask leaves."""
    masks = [one for one in tree_leaves(args[1:]) if isinstance(one, Tensor) and one.dtype == torch.bool]
    return func.overloadpacket is aten.index and bool(masks)


class Captures(Recorder):
    """Repeats a step by calling it, each time as a graph would have it."""

    def __init__(self, slots: int) -> None:
        super().__init__(self._record)
        self.slots = slots
        self.inputs: list[set[int]] = []

    def _record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        loss = torch.zeros(self.slots)

        def repeat() -> None:
            with NoDirectKernels(), AsInAGraph() as mode:
                made = work()
            self.inputs.append(mode.inputs)
            loss.copy_(made)

        return repeat, loss


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "DoRA on all layers": {"adapter": {"targets": "convolutions", "dora": True}},
    "objective": {"objective": {"weighting": "min_snr", "noise_offset": 0.1, "prior_weight": 0.5}, "class_word": "dog"},
    "recalled": {"objective": {"prior_share": 0.9}, "class_word": "dog"},
    "data and averages": {
        "data": {"flip": True, "caption_dropout": 0.3},
        "optimization": {"ema_decay": 0.9, "loraplus_ratio": 4.0, "schedule": "cosine", "warmup_steps": 2},
    },
    "8 bits": {"optimizer": "adamw8bit"},
    "prodigy": {"optimizer": "prodigy", "learning_rate": 1.0},
}


@pytest.mark.parametrize(("options", "slots"), paired(OPTIONS, [1, 4], "captured steps"))
def test_a_step_of_sd15_can_be_captured(runs: Runs, options: str, slots: int) -> None:
    captured(runs("sd15", **{"max_steps": 20, **OPTIONS[options]}), slots)


@pytest.mark.parametrize("slots", sample([1, 4], 1, "captured steps of sdxl"))
def test_a_step_of_sdxl_can_be_captured(runs: Runs, slots: int) -> None:
    captured(runs("sdxl", max_steps=20, adapter={"targets": "all"}), slots)


def test_activations_that_are_computed_again_can_be_captured(runs: Runs) -> None:
    captured(runs("sd15", max_steps=20), 2, is_lean=True)


def captured(run: TrainRun, slots: int, *, is_lean: bool = False, base: Base | None = None) -> None:
    """Train a few steps as a graph would repeat them: nothing is refused, and each reads the same memory."""
    live = Live(run, families.find(run.spec.family), base or base_of(run), total=20, slots=slots)
    live.base.checkpoint_gradients(is_lean)
    live.cohort._step.recorder = captures = Captures(slots)
    for _ in range(20):
        live.step()
        if len(captures.inputs) >= 3:
            break
    assert live.cohort._step.recorder is captures, "the log says what is refused"
    assert len(captures.inputs) >= 3
    assert live.job.step >= WARM_STEPS + 3
    assert captures.inputs[0] == captures.inputs[1] == captures.inputs[2]


def test_z_image_keeps_to_functions(runs: Runs) -> None:
    """Its steps are not recorded, but what it calls must be right on every device."""
    run = runs("z-image", adapter={"targets": "all", "dora": True})
    live = Live(run, families.find("z-image"), base_of(run))
    with NoDirectKernels():
        assert live.step() > 0


# ---- the rules themselves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "work",
    [
        lambda x: torch.native_group_norm(x, None, None, 2, 4, 16, 2, 1e-5),
        lambda x: aten.silu_backward(x, x),
        lambda x: aten.native_group_norm.default(x, None, None, 2, 4, 16, 2, 1e-5),
    ],
)
def test_direct_kernels_are_refused(work: Callable[[Tensor], Any]) -> None:
    with NoDirectKernels(), pytest.raises(Refused):
        work(torch.ones(2, 4, 4, 4))


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x[x > 0],
        lambda x: x * torch.tensor(2.0),
        lambda x: torch.equal(x, x),
    ],
)
def test_reads_of_the_host_are_refused(work: Callable[[Tensor], Any]) -> None:
    with AsInAGraph(), pytest.raises(Refused):
        work(torch.ones(3))


def test_other_memory_is_noticed() -> None:
    first, second = torch.ones(3), torch.ones(3)
    with AsInAGraph() as one:
        _ = (first + 1) * 2
    with AsInAGraph() as other:
        _ = (second + 1) * 2
    assert one.inputs != other.inputs
    assert len(one.inputs) == 1
