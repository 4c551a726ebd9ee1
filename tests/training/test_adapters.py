"""Target sets, rsLoRA and DoRA, against peft; and their files, as people load them."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig

from core.errors import LoraInvalid
from tests.training.conftest import MemoryCheckpoints
from tests.training.live import Live
from tests.training.test_engine import base_of, side_by_side
from tests.training.test_training_reload import TOLERANCE
from training import families, sample
from training.backends.local import train
from training.engine.cohorts.job_batch import draw
from training.engine.objective import errors
from training.families.family import Base
from training.families.registry import FAMILIES
from training.lora import file as lora_file
from training.lora.inspect import inspect
from training.lora.reading import read_lora
from training.lora.safetensor import pack, tensor, unpack
from training.ports import TrainResult, TrainRun

Runs = Callable[..., TrainRun]
KINDS: dict[str, dict[str, Any]] = {"all": {}, "rslora": {"rslora": True}, "dora": {"dora": True}}
# Convolutions with a rank and an alpha of their own.
OWN: dict[str, Any] = {"targets": "convolutions", "conv_rank": 2, "conv_alpha": 3.0}


def peft_of(run: TrainRun, weights: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The base with peft's adapter of the run's recipe, holding `weights`; and its layers."""
    oracle, found, adapter = base_of(run), families.find(run.spec.family), run.spec.adapter
    config = LoraConfig(
        r=run.spec.rank,
        lora_alpha=run.spec.alpha,
        target_modules=found.targets[adapter.targets],  # type: ignore[arg-type]
        use_rslora=adapter.rslora,
        use_dora=adapter.dora,
    )
    if adapter.conv_rank is not None and adapter.conv_alpha is not None:
        spatial = [name for name, part in oracle.denoiser.named_modules() if getattr(part, "kernel_size", 1) == (3, 3)]
        config.rank_pattern = dict.fromkeys(spatial, adapter.conv_rank)
        config.alpha_pattern = dict.fromkeys(spatial, adapter.conv_alpha)
    oracle.denoiser.add_adapter(config)
    layers = {name: module for name, module in oracle.denoiser.named_modules() if hasattr(module, "lora_A")}
    for name, layer in layers.items():
        layer.lora_A["default"].weight.data.copy_(torch.from_numpy(weights[f"{name}.down"]))
        layer.lora_B["default"].weight.data.copy_(torch.from_numpy(weights[f"{name}.up"]))
        if adapter.dora:
            held = layer.lora_magnitude_vector["default"].weight.data
            held.copy_(torch.from_numpy(weights[f"{name}.magnitude"]).view(held.shape))
    return oracle, layers


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *[("sd15", "all"), ("sd15", "rslora"), ("sd15", "dora"), ("sdxl", "dora"), ("z-image", "all")],
        *[("z-image", "dora"), ("sd15", "own"), ("sdxl", "own")],
    ],
)
def test_loss_and_gradients_are_those_of_peft(runs: Runs, family: str, kind: str) -> None:
    adapter = OWN if kind == "own" else {"targets": "all", **KINDS[kind]}
    run, found = runs(family, rank=3, alpha=5.0, adapter=adapter), families.find(family)
    live = Live(run, found, base_of(run))
    for _ in range(2):
        live.step()  # so that B is not zero
    weights = live.cohort.snapshot(live.job).weights
    lot = draw(found, live.base, live.job, live.job.step)

    oracle, layers = peft_of(run, dict(weights))
    assert sorted(layers) == sorted(site.name for site in live.cohort.layout.sites)
    wanted = errors(found, oracle, lot.made, lot.conditions).mean()
    wanted.backward()

    got, gradients = live.gradients(lot)
    assert got == pytest.approx(wanted.item(), rel=1e-5)
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for name, layer in layers.items():
        ends = {"down": layer.lora_A, "up": layer.lora_B}
        if kind == "dora":
            ends["magnitude"] = layer.lora_magnitude_vector
        for end, held in ends.items():
            peft = held["default"].weight.grad.numpy().reshape(gradients[f"{name}.{end}"].shape)
            gap = np.abs(gradients[f"{name}.{end}"] - peft).max()
            assert gap <= 2e-4 * np.abs(peft).max() + 2e-7 * largest, f"{name}.{end}"


# ---- files ------------------------------------------------------------------------------------------------------


def learnt(run: TrainRun) -> tuple[Live, TrainResult]:
    """A live model after the steps of a run, and the file that the run writes."""
    result = train(run)
    live = Live(run, families.find(run.spec.family), base_of(run))
    for _ in range(result.steps):
        live.step()
    return live, result


def answer(live: Live, base: Base) -> torch.Tensor:
    """What a base says of fixed latents."""
    made = live.engine.family.draw(base, torch.stack(live.moments[:2]), torch.Generator().manual_seed(3))
    with torch.no_grad():
        noisy = live.engine.family.mix(base, made)
        return live.engine.family.predict(base, noisy, made.times, live.conditions[:2]).float()


@pytest.mark.parametrize("family", ["sd15", "sdxl", "z-image"])
def test_diffusers_draws_as_the_live_model_does(runs: Runs, family: str) -> None:
    """Feed-forward layers and projections with rsLoRA's scale, through diffusers' own loader."""
    run = runs(family, alpha=5.0, learning_rate=1e-2, adapter={"targets": "all", "rslora": True})
    live, result = learnt(run)
    pipeline = sample.load_pipeline(run.base_model, family, torch.device("cpu"))
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    other = replace(live.base, load_denoiser=lambda: denoiser)
    before = answer(live, other)
    with live.applied():
        wanted = answer(live, live.base)
    assert sample.add_lora(pipeline, result.path) == len(live.cohort.layout.sites)
    change = (wanted - before).norm()
    assert change > 1e-2 * before.norm()
    assert (answer(live, other) - wanted).norm() < TOLERANCE[FAMILIES[family].lora.naming.kind] * change
    assert json.loads(result.metadata["ss_network_args"]) == {"targets": "all", "rslora": True}
    assert (result.metadata["ss_network_alpha"], result.metadata["ss_network_dim"]) == ("10.0", "4")  # 5 sqrt(4)


@pytest.mark.parametrize("family", ["sd15", "sdxl", "z-image"])
def test_peft_draws_a_dora_as_the_live_model_does(runs: Runs, family: str) -> None:
    """From the file alone: matrices, alpha and magnitudes. diffusers' loader drops those, so peft itself is used."""
    run = runs(family, alpha=5.0, learning_rate=1e-2, adapter={"targets": "all", "dora": True})
    live, result = learnt(run)
    tensors, _ = unpack(result.path.read_bytes())
    naming = lora_file.naming_of(family)
    weights: dict[str, Any] = {}
    for site in live.cohort.layout.sites:
        stem = naming.stem(site.name)
        assert tensors[stem + ".alpha"].floats() == 5.0
        ends = {"down": naming.down, "up": naming.up, "magnitude": lora_file.MAGNITUDE}
        weights |= {f"{site.name}.{end}": np.array(tensors[stem + suffix].floats()) for end, suffix in ends.items()}
        tail = (1, 1) if site.is_convolution else ()
        assert weights[f"{site.name}.magnitude"].shape == (site.outputs, 1, *tail)
        assert weights[f"{site.name}.down"].shape == (4, site.inputs, *tail)
    oracle, _ = peft_of(run, weights)
    before = answer(live, base_of(run))
    with live.applied():
        wanted = answer(live, live.base)
    change = (wanted - before).norm()
    assert change > 1e-2 * before.norm()
    assert (answer(live, oracle) - wanted).norm() < TOLERANCE[FAMILIES[family].lora.naming.kind] * change


def test_a_dora_without_all_its_magnitudes_is_refused(runs: Runs) -> None:
    result = train(runs(max_steps=1, adapter={"dora": True}))
    tensors, metadata = unpack(result.path.read_bytes())
    name = next(name for name in tensors if name.endswith(lora_file.MAGNITUDE))
    short = {other: held for other, held in tensors.items() if other != name}
    with pytest.raises(LoraInvalid, match=r"lacks .*\.dora_scale"):
        lora_file.check_lora_file(pack(short, metadata), family="sd15", rank=4)
    tensors[name] = tensor(np.ones((3, 1), np.float32))
    with pytest.raises(LoraInvalid, match="has shape"):
        lora_file.check_lora_file(pack(tensors, metadata), family="sd15", rank=4)


@pytest.mark.parametrize("given", [{"conv_rank": 2}, {"conv_alpha": 3.0}, {"conv_rank": 2, "conv_alpha": 3.0}], ids=str)
@pytest.mark.parametrize("rslora", [False, True], ids=["lora", "rslora"])
def test_convolutions_of_their_own_rank_are_in_the_file(runs: Runs, given: dict[str, Any], rslora: bool) -> None:
    """As kohya's trainer writes them: the rank of 3 x 3 convolutions alone, their alpha, and both in the metadata."""
    result = train(
        runs("sd15", rank=4, alpha=8.0, max_steps=1, adapter={"targets": "convolutions", "rslora": rslora, **given})
    )
    rank = given.get("conv_rank", 4)
    scale, own = (8 / 2, 3 / rank**0.5) if rslora else (8 / 4, 3 / rank)
    own = own if "conv_alpha" in given else scale
    kinds = set()
    for module in read_lora(result.path).modules.values():
        is_spatial = module.down.shape[2:] == (3, 3)
        assert module.rank == (rank if is_spatial else 4)
        assert module.scale == pytest.approx(own if is_spatial else scale)
        kinds.add(module.down.shape[2:])
    assert kinds == {(), (1, 1), (3, 3)}
    arguments = json.loads(result.metadata["ss_network_args"])
    assert (arguments["conv_dim"], float(arguments["conv_alpha"])) == (str(rank), pytest.approx(own * rank, rel=1e-5))
    found = inspect(result.path)
    assert (found.verdict, found.ranks) == ("sound", sorted({rank, 4}))
    tensors, metadata = unpack(result.path.read_bytes())
    name = next(name for name, held in tensors.items() if name.endswith("lora_down.weight") and len(held.shape) == 4)
    tensors[name] = tensor(np.ones((7, *tensors[name].shape[1:]), np.float32))
    with pytest.raises(LoraInvalid, match="has rank 7"):
        lora_file.check_trained(
            pack(tensors, metadata), runs("sd15", rank=4, adapter={"targets": "convolutions", **given}).spec
        )


# ---- beside others ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["all", "dora", "own"])
def test_a_jobs_bytes_do_not_depend_on_its_neighbours(runs: Runs, kind: str) -> None:
    adapter = OWN if kind == "own" else {"targets": "all", **KINDS[kind]}
    mine: dict[str, Any] = {"slots": 4, "seed": 11, "max_steps": 12, "adapter": adapter}
    alone = train(runs(name="alone", **mine))
    others = [
        runs(name=f"o{n}", slots=4, seed=n, rank=n + 1, max_steps=5 * n, adapter=adapter | {"rslora": n > 1})
        for n in (1, 2)
    ]
    plain = runs(name="plain", slots=4, max_steps=10)  # of another shape: it takes turns
    *_, last = side_by_side(plain, *others, runs(name="last", **mine))
    assert isinstance(last, TrainResult)
    assert last.sha256 == alone.sha256


@pytest.mark.parametrize("adapter", [{"targets": "all", "dora": True}, OWN], ids=["dora", "own rank"])
def test_a_training_goes_on_byte_identical(runs: Runs, adapter: dict[str, Any]) -> None:
    kept = MemoryCheckpoints()
    whole = train(runs(name="whole", max_steps=12, every=1, checkpoints=kept, adapter=adapter))
    kept.held = {step: data for step, data in kept.held.items() if step <= 5}
    again = train(runs(name="again", max_steps=12, every=1, checkpoints=kept, adapter=adapter))
    assert again.resumed_from == 5
    assert again.sha256 == whole.sha256
