"""What a training takes of a device's memory: counted from shapes, measured here, and planned for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from core.errors import OutOfMemory
from tests.samples import sample
from training import families, memory_plan
from training.backends import planning
from training.backends.agreement import Agreement
from training.engine import memory_count
from training.engine.memory_count import recipe
from training.engine.state import State
from training.families.registry import FAMILIES
from training.memory_plan import GIB
from training.ports import TrainRun

Runs = Callable[..., TrainRun]

MID: dict[str, Any] = {
    "sample_size": 32,
    "block_out_channels": [64, 128, 128],
    "down_block_types": ["CrossAttnDownBlock2D"] * 2 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 2,
    "layers_per_block": 2,
    "in_channels": 4,
    "cross_attention_dim": 128,
    "attention_head_dim": 4,
    "norm_num_groups": 16,
}
TINY = MID | {
    "block_out_channels": [32, 64], "layers_per_block": 1, "cross_attention_dim": 32,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip


MEASURED = [(name, checkpointing) for name in ("tiny", "mid") for checkpointing in (False, True)]


@pytest.mark.parametrize(("name", "checkpointing"), sample(MEASURED, 2, "measured memory"))
def test_what_is_counted_is_what_the_allocator_gives(name: str, checkpointing: bool) -> None:
    """Against the events of PyTorch's own allocator, over a real step on the CPU. `make test` draws two of four."""
    config = {"tiny": TINY, "mid": MID}[name]
    family, spec, lib = families.find("sd15"), recipe("sd15"), diffusers
    counted = memory_count.count(family, config, spec, (32, 32), dtype=torch.float32, checkpointing=checkpointing)
    denoiser: Any = lib.UNet2DConditionModel.from_config(config).requires_grad_(False).eval()
    if checkpointing:
        denoiser.enable_gradient_checkpointing()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        memory_count.measure(family, denoiser, spec, (32, 32))
    events: Any = run.profiler.kineto_results.events()  # type: ignore[union-attr]
    live = most = 0
    for event in sorted((one for one in events if one.name() == "[memory]"), key=lambda one: one.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    assert counted.adapters + counted.step == pytest.approx(most, rel=0.15)


COUNTED: list[tuple[str, int, dict[str, Any]]] = [
    ("sd15", 512, {"batch_size": 2}),
    ("sd15", 512, {"rank": 64, "adapter": {"dora": True, "targets": "all"}}),
    ("sd15", 512, {"adapter": {"targets": "convolutions"}}),
    ("sd15", 512, {"rank": 8, "adapter": {"targets": "convolutions", "conv_rank": 128}}),
    ("sdxl", 768, {}),
    ("sd15", 512, {"batch_size": 2, "adapter": {"text_encoder": True}}),
    ("sdxl", 768, {"adapter": {"text_encoder": True}}),
    ("z-image", 768, {}),
]


@pytest.mark.parametrize("checkpointing", sample([False, True], 1, "counted checkpointing"))
@pytest.mark.parametrize(("family", "side", "given"), sample(COUNTED, 1, "counted memory"))
def test_the_table_holds_against_counting(family: str, side: int, given: dict[str, Any], checkpointing: bool) -> None:
    """A step of a full-size model, counted. `make test` draws one model, with checkpointing or without."""
    spec, found = recipe(family, resolution=side, **given), families.find(family)
    config = FAMILIES[family].configs[found.parts[0]]
    places = side // found.record.latent_pixels
    made = memory_count.count(found, config, spec, (places, places), checkpointing=checkpointing)
    whole = made.weights + made.adapters + made.step
    planned = memory_plan.needed(spec, checkpointing=checkpointing)
    assert whole < planned < 1.35 * whole + GIB


def test_a_plan_takes_the_most_slots_and_checkpoints_only_where_it_must() -> None:
    wide = memory_plan.plan(recipe("sd15"), 80 * GIB, most_slots=32)
    assert (wide.slots, wide.checkpointing) == (32, False)
    small = memory_plan.plan(recipe("sd15"), 6 * GIB, most_slots=32)
    assert (small.slots, small.checkpointing) == (4, False)
    assert str(small) == "needs 3.2 GB, this card has 6.0 (4 slots)"
    tight = memory_plan.plan(recipe("sdxl"), 8 * GIB)
    assert tight.checkpointing
    assert memory_plan.plan(recipe("z-image"), 16 * GIB).checkpointing
    # Fewer bits only where checkpointing does not do, and as many as fit.
    for gib, kind in ((16, "none"), (12, "8bit"), (10, "4bit")):
        assert memory_plan.plan(recipe("z-image"), gib * GIB).quantisation == kind
    assert str(memory_plan.plan(recipe("z-image"), 12 * GIB)) == (
        "needs 10.5 GB, this card has 12.0 (1 slot, gradient checkpointing, base in 8 bits)"
    )
    # A tiny base of the family is measured by its file.
    share = memory_plan.share_of(recipe("sd15"), 2**20)
    assert memory_plan.plan(recipe("sd15"), GIB, most_slots=32, share=share).slots == 32
    assert memory_plan.share_of(recipe("sd15"), 4 * 859520964) == pytest.approx(1.0)


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    with pytest.raises(OutOfMemory, match=r"z-image at 1024 px, .* this card has 8\.0: use a card with 9 GB"):
        memory_plan.plan(recipe("z-image"), 8 * GIB)
    with pytest.raises(OutOfMemory, match=r"12\.0: use IMPRINT_QUANTISE_BASE=8bit or a card with 16 GB"):
        memory_plan.plan(recipe("z-image"), 12 * GIB, quantisations=["none"])
    with pytest.raises(OutOfMemory) as raised:
        memory_plan.plan(recipe("sdxl", batch_size=16), 8 * GIB)
    message = raised.value.message
    assert "use batch_size " in message
    assert "or resolution " in message
    fitting = int(message.split("batch_size ")[1].split()[0])
    assert memory_plan.plan(recipe("sdxl", batch_size=fitting), 8 * GIB).checkpointing


# ---- a job on a card of a given size -------------------------------------------------------------------------------


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A CUDA device with so many GiB free, as far as the plan of a job asks it."""

    def build(gib: float) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(gib * GIB), int(gib * GIB)))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)

    return build


def planned(run: TrainRun, agreement: Agreement) -> tuple[Any, Agreement]:
    """What a job's plan is, with a base of the standard size."""
    family = families.find(run.spec.family)
    with pytest.MonkeyPatch.context() as patch:
        bytes_of = 2 * memory_plan.sizes_of(run.spec.family).parameters
        patch.setattr(planning, "weights_bytes", lambda *_: bytes_of)
        return planning.fit_to_memory(run, family, Path(run.base_model), torch.device("cuda"), agreement)


def test_a_job_takes_what_its_card_has(runs: Runs, card: Callable[[float], None]) -> None:
    run = runs("sdxl", resolution=1024)
    fresh = Agreement(torch.bfloat16, memory_plan.QUANTISATIONS, None)
    card(24)
    roomy, _ = planned(run, fresh)
    assert (roomy.checkpointing, roomy.quantisation) == (False, "none")
    assert roomy.slots > 1
    card(7)
    tight, _ = planned(run, fresh)
    assert (tight.checkpointing, tight.quantisation) == (True, "none")
    card(5)
    small, _ = planned(run, fresh)
    assert (small.checkpointing, small.quantisation) == (True, "8bit")
    card(2)
    with pytest.raises(OutOfMemory, match="use a card with 4 GB"):
        planned(run, fresh)


def test_a_job_that_moved_to_a_smaller_card_begins_anew_rather_than_fails(
    runs: Runs, card: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    run = runs("sdxl", resolution=1024)
    began = Agreement(torch.bfloat16, ("none",), State(5, {}, "epsilon", precision="bfloat16"))
    card(7)
    same, agreement = planned(run, began)
    assert (same.quantisation, agreement.state) == ("none", began.state)
    card(5)
    fewer, agreement = planned(run, began)
    assert (fewer.quantisation, agreement.state) == ("8bit", None)
    assert "restarts" in caplog.text
    with pytest.raises(OutOfMemory, match="IMPRINT_QUANTISE_BASE=8bit"):
        planned(replace(run, quantise="none"), began)
