"""A LoRA on the text encoders too: against peft, in a cohort, over a resume, and in files as programs read them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from core.errors import LoraInvalid
from tests.training.conftest import MemoryCheckpoints, MemoryPreviews
from tests.training.live import Live
from tests.training.test_cuda_contracts import captured
from tests.training.test_engine import CPU, side_by_side
from tests.training.test_training_reload import LEVELS, drawn
from training import families, sample
from training.backends.local import train
from training.engine.cohorts.job_batch import draw
from training.engine.objective import errors
from training.families.family import Base, Where
from training.lora import file as lora_file
from training.lora.formats import serialize_as
from training.lora.inspect import inspect
from training.lora.reading import read_lora
from training.lora.safetensor import pack, unpack
from training.ports import TrainResult, TrainRun

Runs = Callable[..., TrainRun]
TEXT: dict[str, Any] = {"targets": "attention", "text_encoder": True}
FAMILIES = ["sd15", "sdxl"]
LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def base_of(run: TrainRun) -> Base:
    return families.find(run.spec.family).load(
        Where(Path(run.base_model), CPU, torch.float32, trains_text_encoders=True)
    )


def live_of(run: TrainRun, steps: int = 0) -> Live:
    live = Live(run, families.find(run.spec.family), base_of(run), total=20)
    for _ in range(steps):
        live.step()
    return live


def peft_layers(run: TrainRun, base: Base, weights: dict[str, Any]) -> dict[str, Any]:
    """Put peft's adapters with `weights` into a base's UNet and text encoders; its layers by our names."""
    spec, targets = run.spec, families.find(run.spec.family).targets
    shared: dict[str, Any] = {"r": spec.rank, "lora_alpha": spec.alpha, "use_dora": spec.adapter.dora}
    base.denoiser.add_adapter(LoraConfig(target_modules=targets[spec.adapter.targets], **shared))  # type: ignore[arg-type]
    networks = {"": base.denoiser}
    for part, encoder in base.text_encoders.items():
        inject_adapter_in_model(LoraConfig(target_modules=list(LINEARS), **shared), encoder)
        networks[f"{part}." + ("" if hasattr(encoder, "text_model") else "text_model.")] = encoder
    layers = {
        prefix + name: module
        for prefix, network in networks.items()
        for name, module in network.named_modules()
        if hasattr(module, "lora_A")
    }
    for name, layer in layers.items():
        layer.lora_A["default"].weight.data.copy_(torch.from_numpy(weights[f"{name}.down"]))
        layer.lora_B["default"].weight.data.copy_(torch.from_numpy(weights[f"{name}.up"]))
        if spec.adapter.dora:
            held = layer.lora_magnitude_vector["default"].weight.data
            held.copy_(torch.from_numpy(weights[f"{name}.magnitude"]).view(held.shape))
    return layers


@pytest.mark.parametrize(("family", "dora"), [("sd15", False), ("sdxl", False), ("sd15", True)])
def test_loss_and_gradients_are_those_of_peft(runs: Runs, family: str, dora: bool) -> None:
    run = runs(family, rank=3, alpha=5.0, learning_rate=1e-2, adapter={**TEXT, "dora": dora})
    live = live_of(run, 2)  # so that B is not zero
    weights = dict(live.cohort.snapshot(live.job).weights)
    lot = draw(live.engine.family, live.base, live.job, live.job.step)
    assert all("tokens" in condition for condition in lot.conditions)

    oracle = base_of(run)
    layers = peft_layers(run, oracle, weights)
    assert sorted(layers) == sorted(site.name for site in live.cohort.layout.sites)
    wanted = errors(live.engine.family, oracle, lot.made, lot.conditions).mean()
    wanted.backward()

    got, gradients = live.gradients(lot)
    assert got == pytest.approx(wanted.item(), rel=1e-5)
    largest = max(np.abs(gradient).max() for name, gradient in gradients.items() if name.startswith("text_encoder"))
    assert largest > 0
    for name, layer in layers.items():
        ends = {"down": layer.lora_A, "up": layer.lora_B}
        if dora:
            ends["magnitude"] = layer.lora_magnitude_vector
        for end, held in ends.items():
            ours, theirs = gradients[f"{name}.{end}"], held["default"].weight.grad
            # The last layer of each encoder of sdxl is not read, only what the second one pools.
            peft = np.zeros_like(ours) if theirs is None else theirs.numpy().reshape(ours.shape)
            assert np.abs(ours - peft).max() <= 2e-4 * np.abs(peft).max() + 2e-6 * largest, f"{name}.{end}"


def test_text_encoders_have_a_rate_of_their_own(runs: Runs) -> None:
    """The first step of Adam changes B, which begins at zero, by the rate: here each by its own, in LoRA+ by more."""
    given = {"text_encoder_learning_rate": 2e-4, "loraplus_ratio": 4.0}
    run = runs(learning_rate=1e-3, adapter=TEXT, optimization=given)
    live = live_of(run, 1)
    weights = live.cohort.snapshot(live.job).weights
    for is_text, rate in ((True, 2e-4), (False, 1e-3)):
        ups = [np.abs(held).max() for name, held in weights.items()
               if name.endswith(".up") and name.startswith("text_encoder.") == is_text]  # fmt: skip
        assert max(ups) == pytest.approx(4 * rate, rel=0.02)
    metadata = train(runs(max_steps=1, adapter=TEXT, optimization=given)).metadata
    assert (metadata["ss_unet_lr"], metadata["ss_text_encoder_lr"]) == ("0.001", "0.0002")
    assert train(runs(max_steps=1, adapter=TEXT)).metadata["ss_text_encoder_lr"] == "0.001"
    assert train(runs(max_steps=1)).metadata["ss_text_encoder_lr"] == "None"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("slots", [1, 4])
def test_a_step_can_be_captured(runs: Runs, family: str, slots: int) -> None:
    """No host read in a step: nothing that a CUDA graph refuses."""
    captured(runs(family, max_steps=20, adapter=TEXT), slots, base=base_of(runs(family, adapter=TEXT)))


@pytest.mark.parametrize("optimizer", ["adamw", "prodigy"])
def test_a_training_goes_on_byte_identical(runs: Runs, optimizer: str) -> None:
    kept = MemoryCheckpoints()
    given: dict[str, Any] = {"max_steps": 8, "every": 1, "adapter": TEXT, "optimizer": optimizer}
    given |= {"learning_rate": 1.0} if optimizer == "prodigy" else {"optimization": {"ema_decay": 0.9}}
    whole = train(runs(name="whole", checkpoints=kept, **given))
    kept.held = {step: data for step, data in kept.held.items() if step <= 5}
    again = train(runs(name="again", checkpoints=kept, **given))
    assert again.resumed_from == 5
    assert again.sha256 == whole.sha256


def test_a_jobs_bytes_do_not_depend_on_its_neighbours(runs: Runs) -> None:
    mine: dict[str, Any] = {"slots": 4, "seed": 11, "max_steps": 8, "adapter": TEXT}
    alone = train(runs(name="alone", **mine))
    others = [runs(name=f"o{n}", slots=4, seed=n, rank=n + 1, max_steps=4 * n, adapter=TEXT) for n in (1, 2)]
    *_, last = side_by_side(*others, runs(name="last", **mine))
    assert isinstance(last, TrainResult)
    assert last.sha256 == alone.sha256


def test_every_option_of_a_recipe_works_beside_it(runs: Runs) -> None:
    """Two objectives, captions dropped, held-out pictures, previews, checkpoints of activations: the LoRA is learnt."""
    previews = MemoryPreviews()
    run = runs(
        count=7,
        class_word="dog",
        previews=previews,
        adapter={**TEXT, "rslora": True, "targets": "convolutions", "conv_rank": 2},
        objective={"weighting": "min_snr", "noise_offset": 0.1, "prior_weight": 0.5, "prior_share": 0.2},
        data={"caption_dropout": 0.3, "flip": True},
        validation={"held_out": 2, "every_epochs": 1, "keep_best": True, "previews": ["sks dog"]},
        optimizer="adamw8bit",
        learning_rate=1e-2,
    )
    result = train(run)
    assert result.validation_loss is not None
    assert previews.held
    live = live_of(runs(adapter=TEXT))
    lot = draw(live.engine.family, live.base, live.job, 0)
    loss, gradients = live.gradients(lot)
    live.cohort.stack.masters.grad = None
    live.base.checkpoint_gradients(True)
    again, checkpointed = live.gradients(lot)
    assert again == loss
    assert all(np.array_equal(gradients[name], checkpointed[name]) for name in gradients)


def test_validation_and_previews_use_the_trained_text_encoder(runs: Runs) -> None:
    """With zeros in place of the UNet's LoRA, the prediction still differs from the base's."""
    live = live_of(runs(learning_rate=1e-2, adapter=TEXT), 3)
    stack, layout = live.cohort.stack, live.cohort.layout
    for span in layout.spans:
        if not span.is_text:
            stack.masters.data[:, span.begin : span.end] = 0
    lot = draw(live.engine.family, live.base, live.job, 0)
    with torch.no_grad():
        plain = errors(live.engine.family, live.base, lot.made, lot.conditions)
    with live.applied():
        assert not torch.equal(errors(live.engine.family, live.base, lot.made, lot.conditions), plain)


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_on_a_quantised_base(runs: Runs, kind: str) -> None:
    """The UNet is in fewer bits; the text encoders are not, and learn."""
    result = train(runs("sdxl", quantise=kind, learning_rate=1e-2, max_steps=2, adapter=TEXT))
    modules = read_lora(result.path).modules
    assert any(one.up.floats().any() for name, one in modules.items() if name.startswith("text_encoder."))


# ---- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["kohya", "peft"])
@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_draws_as_the_live_model_does(runs: Runs, family: str, form: str, tmp_path: Path) -> None:
    run = runs(family, rank=4, alpha=32.0, learning_rate=1e-2, adapter=TEXT)
    result = train(run)
    live = live_of(run)
    for _ in range(result.steps):
        live.step()
    path = tmp_path / "form.safetensors"
    path.write_bytes(serialize_as(read_lora(result.path), form))
    names = {
        unpack(path.read_bytes())[0].keys() and key.partition("text_model")[0]
        for key in unpack(path.read_bytes())[0]
        if "text_model" in key
    }
    two = family == "sdxl"
    wanted_names = {"kohya": {"lora_te1_", "lora_te2_"} if two else {"lora_te_"},
                    "peft": {"text_encoder.", "text_encoder_2."} if two else {"text_encoder."}}  # fmt: skip
    assert names == wanted_names[form]

    pipeline = sample.load_pipeline(run.base_model, family, torch.device("cpu"))
    plain = drawn(pipeline)
    parts = {family_part: getattr(pipeline, family_part) for family_part in ("unet", *live.base.text_encoders)}
    pipeline.unet = live.base.denoiser
    for part, encoder in live.base.text_encoders.items():
        setattr(pipeline, part, encoder)
    with live.applied():
        wanted = drawn(pipeline)
    for part, network in parts.items():
        setattr(pipeline, part, network)
    assert sample.add_lora(pipeline, path) == len(live.cohort.layout.sites)
    levels = LEVELS[lora_file.naming_of(family).kind]
    assert np.abs(plain - wanted).max() > 3 * levels
    assert np.abs(drawn(pipeline) - wanted).max() <= levels
    found = inspect(path)
    assert found.verdict == "sound"
    assert found.readers["diffusers"] == "whole"
    if form == "kohya":
        assert found.readers == {"diffusers": "whole", "ComfyUI": "whole", "AUTOMATIC1111": "whole"}
    assert {"text encoder, attention", "text encoder, feed-forward"} <= set(found.kinds)


def test_the_check_of_a_file_counts_the_layers_of_text_encoders(runs: Runs) -> None:
    run = runs("sdxl", max_steps=1, adapter=TEXT)
    tensors, metadata = unpack(train(run).path.read_bytes())
    whole = pack(tensors, metadata)
    assert lora_file.check_trained(whole, run.spec).modules == len({key.partition(".")[0] for key in tensors})
    stem = next(key for key in tensors if key.startswith("lora_te2_")).partition(".")[0]
    short = {key: held for key, held in tensors.items() if key.partition(".")[0] != stem}
    with pytest.raises(LoraInvalid, match="modules of the text_encoder_2, whole layers have"):
        lora_file.check_trained(pack(short, metadata), run.spec)
    without = {key: held for key, held in tensors.items() if not key.startswith("lora_te2_")}
    with pytest.raises(LoraInvalid, match="has 0 modules of the text_encoder_2"):
        lora_file.check_trained(pack(without, metadata), run.spec)
    other = replace(run, spec=runs("sdxl", max_steps=1).spec).spec
    with pytest.raises(LoraInvalid, match="text_encoder, which was not trained"):
        lora_file.check_trained(whole, other)
