"""The objectives against numbers worked out by hand, each family's loss against a committed one, faulty base models."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import BaseModelUnavailable, ImageInvalid
from tests.families import LOCAL
from tests.training.live import Live, of
from training import families
from training.backends.local import train
from training.engine.objective import errors, per_sample_error
from training.families import diffusion, flow
from training.families.encoders import Encoders
from training.families.family import Base, Draw, FamilyCode, Where
from training.families.registry import FAMILIES
from training.families.weights.fingerprint import fingerprint
from training.families.weights.parts import class_of, locate
from training.lora import file as lora_file
from training.ports import Example, TrainRun
from training.tiny import base as tiny_base

Runs = Callable[..., TrainRun]
Bases = Callable[..., Path]
CPU = torch.device("cpu")
lib: Any = diffusers


def loaded(found: FamilyCode, folder: Path, dtype: torch.dtype = torch.float32) -> Base:
    """The base model in `folder`, on the CPU."""
    return found.load(Where(folder, CPU, dtype))


def drawn(latents: list[float], noise: list[float], times: Any) -> Draw:
    """One sample of one pixel with as many channels as there are numbers."""
    shape = (1, -1, 1, 1)
    return Draw.plain(torch.tensor(latents).reshape(shape), torch.tensor(noise).reshape(shape), torch.tensor(times))


# ---- by hand -----------------------------------------------------------------------------------------------------


def test_epsilon_and_v_by_hand() -> None:
    # a = 0.64: sqrt a = 0.8, sqrt(1 - a) = 0.6. Latents (1, -2), noise (0.5, 1).
    made = drawn([1.0, -2.0], [0.5, 1.0], [1])
    alphas = torch.tensor([0.9, 0.64])
    epsilon = diffusion.DiscreteSchedule(alphas, 1.0, "epsilon")
    velocity = diffusion.DiscreteSchedule(alphas, 1.0, "v_prediction")
    # 0.8 * 1 + 0.6 * 0.5 = 1.1; 0.8 * -2 + 0.6 * 1 = -1.0
    assert diffusion.mix(of(epsilon), made).flatten().tolist() == pytest.approx([1.1, -1.0])
    assert diffusion.target(of(epsilon), made).flatten().tolist() == [0.5, 1.0]
    # 0.8 * 0.5 - 0.6 * 1 = -0.2; 0.8 * 1 - 0.6 * -2 = 2.0
    assert diffusion.target(of(velocity), made).flatten().tolist() == pytest.approx([-0.2, 2.0])
    # ((0 + 0.2)^2 + (1 - 2)^2) / 2 = 0.52
    predicted = torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1)
    assert per_sample_error(predicted, diffusion.target(of(velocity), made)).tolist() == pytest.approx([0.52])


def test_flow_by_hand() -> None:
    # u = 0.5 at shift 3: 3 * 0.5 / (1 + 2 * 0.5) = 0.75; the ends stay.
    assert flow.shifted(torch.tensor([0.0, 0.5, 1.0]), 3.0).tolist() == pytest.approx([0.0, 0.75, 1.0])
    made = drawn([1.0, -2.0], [0.5, 1.0], [0.75])
    # 0.25 * 1 + 0.75 * 0.5 = 0.625; 0.25 * -2 + 0.75 * 1 = 0.25
    assert flow.mix(of(None), made).flatten().tolist() == pytest.approx([0.625, 0.25])
    assert flow.target(of(None), made).flatten().tolist() == pytest.approx([-0.5, 3.0])


def test_flow_asks_the_model_in_its_own_signs() -> None:
    """diffusers' model is given 1 - s and says latents - noise: one that knows the answer has no loss."""
    made = drawn([1.0, -2.0], [0.5, 1.0], [0.75])
    asked: list[Any] = []

    def knows(frames: list[torch.Tensor], times: torch.Tensor, contexts: Any, return_dict: bool) -> tuple[Any]:
        asked.extend([frames[0].shape, times.tolist()])
        return ([(made.latents - made.noise)[0].unsqueeze(1)],)

    base: Any = SimpleNamespace(denoiser=knows, dtype=torch.float32)
    assert errors(families.find("z-image"), base, made, [{"context": torch.zeros(3, 2)}]).tolist() == [0.0]
    assert asked == [(2, 1, 1, 1), [0.25]]


def test_draws_are_scaled_and_of_the_seed() -> None:
    schedule = diffusion.DiscreteSchedule(torch.linspace(0.99, 0.01, 1000), 0.18215, "epsilon")
    base = Base(lambda: None, Encoders({}), schedule, CPU, torch.float32, "epsilon")
    moments = torch.cat([torch.full((1, 4, 8, 8), 2.0), torch.full((1, 4, 8, 8), -30.0)], dim=1)
    one, two = (diffusion.draw(base, moments, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one.noise, two.noise)
    assert torch.equal(one.times, two.times)
    assert one.latents.mean().item() == pytest.approx(2.0 * 0.18215, rel=1e-4)
    assert 0 <= one.times.item() < 1000


# ---- the real modules, tiny --------------------------------------------------------------------------------------

# The loss of the first and of the sixth step, on the tiny base of seed 0. A change here is a change of what is trained:
# explain it in the commit that moves a number.
GOLDEN = {
    ("sd15", "epsilon"): (1.205482, 1.012914),
    ("sd15", "v_prediction"): (1.179441, 0.943272),
    ("sdxl", "epsilon"): (1.158457, 1.026008),
    ("sdxl", "v_prediction"): (1.112549, 1.752057),
    ("z-image", "flow"): (2.123966, 2.012690),
    ("flux2-klein-4b", "flow"): (2.303118, 2.264313),
    ("qwen-image", "flow"): (2.399851, 2.019913),
    ("qwen-image-21", "flow"): (2.695006, 2.931549),
    ("flux1", "flow"): (1.887623, 2.022703),
    ("chroma", "flow"): (1.986017, 1.921410),
    ("sd35-large", "flow"): (1.990773, 1.928223),
}


@pytest.mark.every_case
@pytest.mark.parametrize(("family", "prediction"), list(GOLDEN))
def test_golden_loss(runs: Runs, family: str, prediction: str) -> None:
    run = runs(family, prediction=prediction, learning_rate=1e-3, seed=1234)
    found, folder = families.find(family), Path(run.base_model)
    learner = Live(run, found, loaded(found, folder))
    losses = [learner.step() for _ in range(6)]
    assert (losses[0], losses[5]) == pytest.approx(GOLDEN[family, prediction], rel=1e-3)


def test_the_lora_learns(runs: Runs) -> None:
    """The same steps again, after training, cost less. Steps are functions of their number, so that can be measured."""
    run = runs(learning_rate=3e-3, max_steps=60)
    found, folder = families.find("sd15"), Path(run.base_model)
    learner = Live(run, found, loaded(found, folder), 60)
    losses = [learner.step() for _ in range(60)]
    before = np.mean(losses[:20])
    learner.cohort.stack.rates.zero_()
    learner.job.step = 0
    after = np.mean([learner.step() for _ in range(20)])
    assert after < 0.97 * before


def test_what_is_trained_and_what_is_frozen(runs: Runs) -> None:
    run = runs("sdxl")
    found = families.find("sdxl")
    learner = Live(run, found, loaded(found, Path(run.base_model)))
    before = {name: part.clone() for name, part in learner.base.denoiser.named_parameters()}
    assert not any(part.requires_grad for part in learner.base.denoiser.parameters())
    learner.step()
    assert all(torch.equal(part, before[name]) for name, part in learner.base.denoiser.named_parameters())
    moved = learner.cohort.snapshot(learner.job).weights
    assert len(moved) == 2 * len(learner.cohort.layout.sites)
    assert all(values.any() for values in moved.values())


def test_sdxl_is_told_the_size_of_the_picture(bases: Bases, pictures: Callable[..., list[Example]]) -> None:
    found = families.find("sdxl")
    base = found.load(Where(bases("sdxl"), CPU, torch.float32))
    wide = pictures(2, wide=1)
    conditions = found.encode_captions(base, wide)
    assert conditions[0]["sizes"].tolist() == [[64, 128, 0, 0, 64, 128]]
    assert conditions[1]["sizes"].tolist() == [[64, 64, 0, 0, 64, 64]]
    assert conditions[0]["context"].shape == (1, 77, 80)
    assert conditions[0]["pooled"].shape == (1, 48)


@pytest.mark.parametrize("family", LOCAL)
def test_sixteen_bit_bases_keep_full_adapters(runs: Runs, family: str) -> None:
    """What runs on a GPU: a bfloat16 base, float32 adapters, losses near those of float32."""
    found, folder = families.find(family), Path(runs(family).base_model)
    full = Live(runs(family), found, loaded(found, folder))
    half = Live(runs(family), found, loaded(found, folder, torch.bfloat16))
    assert half.base.denoiser.dtype is torch.bfloat16
    assert half.cohort.stack.masters.dtype is torch.float32
    losses = [(full.step(), half.step()) for _ in range(4)]
    for wanted, got in losses:
        assert got == pytest.approx(wanted, rel=0.05)


def full_size(family: str) -> Any:
    """The denoiser of the real base model, without weights."""
    record = FAMILIES[family]
    with torch.device("meta"):
        return class_of(record.classes[record.denoiser]).from_config(dict(record.configs[record.denoiser]))


# sd15: 16 transformer blocks with two attentions of four linears; sdxl: 70 such; z-image: 30 blocks of seven linears.
# And all: two linears more in each block, and two projections around each of the 16 transformers of sd15, of the 11
# of sdxl; in z-image one modulation in each block. FLUX.2: eight linears in each double block and two in each single
# one; and all: four more in each double block. FLUX.1: eight linears in each double block and three in each single
# one; and all: four and two more. Chroma: as FLUX.1, with one more in each single block. Qwen-Image: eight linears in
# each of 60 blocks; and all: four more. Qwen-Image 2.1: four in each of 32 blocks; and all: three more. Stable
# Diffusion 3.5: eight linears in each of 38 or 24 blocks, but seven in the last one, and in Medium four more in 13 of
# them; and all: four more, but two in the last one.
@pytest.mark.parametrize(
    ("family", "targeted", "modules"),
    [
        *[("sd15", "attention", 128), ("sdxl", "attention", 560), ("z-image", "attention", 210)],
        *[("sd15", "all", 192), ("sdxl", "all", 722), ("z-image", "all", 240)],
        *[("sd15", "convolutions", 278), ("sdxl", "convolutions", 788)],
        *[("flux2-klein-4b", "attention", 80), ("flux2-klein-9b", "attention", 112), ("qwen-image", "attention", 480)],
        *[("flux1", "attention", 266), ("flux1", "all", 418), ("chroma", "attention", 304), ("chroma", "all", 418)],
        *[("sd35-large", "attention", 303), ("sd35-large", "all", 453)],
        *[("sd35-medium", "attention", 243), ("sd35-medium", "all", 337)],
        *[("qwen-image-21", "attention", 128), ("qwen-image-21", "all", 224)],
        *[("flux2-klein-4b", "all", 100), ("flux2-klein-9b", "all", 144), ("qwen-image", "all", 720)],
    ],
)
def test_targets_in_the_real_models(family: str, targeted: str, modules: int) -> None:
    """Every targeted module of the full model is a linear or a convolution, and the check knows its name."""
    naming = lora_file.naming_of(family)
    targets = families.find(family).targets[targeted]
    found = {name: part for name, part in full_size(family).named_modules() if re.fullmatch(targets, name)}
    assert len(found) == modules
    convolved = {("sd15", "all"): 32, ("sd15", "convolutions"): 32 + 64, ("sdxl", "convolutions"): 49}
    kernels = [part.kernel_size for part in found.values() if isinstance(part, torch.nn.Conv2d)]
    assert len(kernels) == convolved.get((family, targeted), 0)
    assert set(kernels) <= ({(1, 1), (3, 3)} if targeted == "convolutions" else {(1, 1)})
    assert all(isinstance(part, torch.nn.Linear | torch.nn.Conv2d) for part in found.values())
    stems = {naming.stem(name) for name in found}
    assert len(stems) == modules
    assert all(naming.modules.fullmatch(stem, len(naming.prefix)) for stem in stems)


# ---- the training adapter of z-image-turbo -----------------------------------------------------------------------


def test_training_adapter_is_merged_and_not_in_the_file(runs: Runs, tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    pair = chance.normal(size=(2, 64)).astype("f4"), chance.normal(size=(64, 2)).astype("f4")
    adapter = tmp_path / "adapter.safetensors"
    lora_file.write_file(adapter, lora_file.serialize_lora("z-image", {"layers.0.attention.to_q": pair}, 4.0, {}))
    run = runs("z-image")
    plain = families.find("z-image").load(Where(Path(run.base_model), CPU, torch.float32))
    merged = families.find("z-image").load(Where(Path(run.base_model), CPU, torch.float32, adapter))
    change = merged.denoiser.layers[0].attention.to_q.weight - plain.denoiser.layers[0].attention.to_q.weight
    wanted = torch.from_numpy(pair[1] @ pair[0]) * (4.0 / 2)
    assert (change - wanted).norm() < 0.01 * wanted.norm()  # the file holds it in bfloat16
    trained = train(replace(run, training_adapter=adapter))
    report = lora_file.check_lora_file(trained.path, family="z-image", rank=4)
    assert report.modules == 14
    assert trained.sha256 != train(replace(run, out=tmp_path / "without.safetensors")).sha256
    with pytest.raises(BaseModelUnavailable, match="does not exist"):
        train(replace(run, training_adapter=tmp_path / "none"))


def test_flux1_is_drawn_without_the_adapter_and_with_the_guidance_of_its_users(bases: Bases, tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    pair = chance.normal(size=(2, 64)).astype("f4"), chance.normal(size=(64, 2)).astype("f4")
    name, adapter = "single_transformer_blocks.0.attn.to_k", tmp_path / "adapter.safetensors"
    declared = {"ss_base_model_version": "flux1"}  # the tiny widths do not say it
    lora_file.write_file(adapter, lora_file.serialize_lora("flux1", {name: pair}, 2.0, declared))
    found = families.find("flux1")
    plain = found.load(Where(bases("flux1"), CPU, torch.float32)).denoiser.get_submodule(name)
    base = found.load(Where(bases("flux1"), CPU, torch.float32, adapter))
    merged, x = base.denoiser.get_submodule(name), torch.randn(3, 64)
    wanted = torch.from_numpy(pair[1] @ pair[0])
    assert (merged.weight - plain.weight - wanted).norm() < 0.01 * wanted.norm()  # the file holds it in bfloat16
    assert base.schedule.guidance == 1.0
    with found.as_used(base):
        torch.testing.assert_close(merged(x), plain(x), rtol=1e-4, atol=1e-4)
        assert base.schedule.guidance == 3.5
    assert base.schedule.guidance == 1.0


def test_turbo_without_its_adapter_is_warned_of(runs: Runs, bases: Bases, caplog: pytest.LogCaptureFixture) -> None:
    named = bases("z-image").parent / "Z-Image-Turbo"
    if not named.exists():
        shutil.copytree(bases("z-image"), named)
    train(runs("z-image", base=named, max_steps=1))
    assert "without its training adapter" in caplog.text


# ---- faulty base models ------------------------------------------------------------------------------------------


def remove(folder: Path) -> None:
    shutil.rmtree(folder / "unet")


def cut(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])


def pickled(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def reshaped(folder: Path) -> None:
    config = json.loads((folder / "unet" / "config.json").read_text())
    config["cross_attention_dim"] = 48
    (folder / "unet" / "config.json").write_text(json.dumps(config))


def unindexed(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def other_family(folder: Path) -> None:
    config = json.loads((folder / "unet" / "config.json").read_text())
    config["addition_embed_type"] = "text_time"
    (folder / "unet" / "config.json").write_text(json.dumps(config))


def lacking_unet(folder: Path) -> None:
    lacking(folder / "unet" / "diffusion_pytorch_model.safetensors")


def lacking_text(folder: Path) -> None:
    lacking(folder / "text_encoder" / "model.safetensors")


def lacking(weights: Path) -> None:
    held = load_file(weights)
    held.pop(sorted(held)[-1])
    save_file(held, weights, {"format": "pt"})


def sampled(folder: Path) -> None:
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    config["prediction_type"] = "sample"
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (remove, "has no unet"),
    (cut, "cannot be loaded"),
    (pickled, "pickle"),
    (reshaped, "unet"),
    (unindexed, "model_index.json"),
    (other_family, "not one of sd15"),
    (sampled, "predicts 'sample'"),
    (lacking_unet, "unet .* lacks 1 weights"),
    (lacking_text, "text_encoder .* lacks 1 weights"),
]


@pytest.mark.parametrize(("spoil", "message"), FAULTS, ids=[spoil.__name__ for spoil, _ in FAULTS])
def test_faulty_base_models_are_unavailable(
    runs: Runs, bases: Bases, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(bases(), folder)
    spoil(folder)
    with pytest.raises(BaseModelUnavailable, match=message):
        train(runs(base=folder))


def test_a_base_model_with_half_weights_only(runs: Runs, bases: Bases, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(bases(), folder)
    for part, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        weights = folder / part / f"{name}.safetensors"
        save_file({key: value.half() for key, value in load_file(weights).items()}, weights, {"format": "pt"})
        weights.rename(folder / part / f"{name}.fp16.safetensors")
    assert train(runs(base=folder)).steps == 6


@pytest.mark.parametrize("name", ["/nowhere/model", "no such model", "../x/y/z"])
def test_a_base_model_that_is_nowhere(name: str) -> None:
    with pytest.raises(BaseModelUnavailable, match="does not exist"):
        locate(name, ("unet",))


def test_a_base_model_in_a_folder_that_the_worker_may_not_enter(tmp_path: Path) -> None:
    """Such as one below /root, which the systemd units do not see."""
    locked = tmp_path / "locked"
    locked.mkdir(0o700)
    locked.chmod(0)
    was = os.geteuid()
    if was == 0:  # nothing is closed to root
        os.seteuid(65534)
    try:
        with pytest.raises(BaseModelUnavailable, match=r"cannot be read .Permission denied.: give the user"):
            locate(str(locked / "model"), ("unet",))
    finally:
        os.seteuid(was)
        locked.chmod(0o700)


def test_a_base_model_whose_weights_the_worker_may_not_read(bases: Bases, monkeypatch: pytest.MonkeyPatch) -> None:
    opens = Path.open

    def refuses(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.suffix == ".safetensors":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opens(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", refuses)
    with pytest.raises(BaseModelUnavailable, match=r"model\.safetensors cannot be read .Permission denied"):
        fingerprint(bases(), families.find("sd15").parts)


def test_offline_the_hub_fails_at_once(tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub reads HF_HUB_OFFLINE when it is imported."""
    code = (
        "from training.families.weights.folders import from_hub\n"  # what `locate` calls, without PyTorch
        "from core.errors import BaseModelUnavailable\n"
        "import time; begun = time.monotonic()\n"
        "try: from_hub('nobody/nothing', ('unet',))\n"
        "except BaseModelUnavailable as error: print(error, time.monotonic() - begun < 20)\n"
    )
    surroundings = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=surroundings, capture_output=True, text=True, check=True, timeout=60
    )
    assert "nobody/nothing is not in the cache of this machine" in done.stdout
    assert done.stdout.strip().endswith("True")


def test_fingerprint_tells_models_apart(bases: Bases, tmp_path: Path) -> None:
    parts = families.find("sd15").parts
    other = tiny_base.make(tmp_path / "other", "sd15", seed=1)
    again = tiny_base.make(tmp_path / "again", "sd15", seed=0)
    assert fingerprint(bases(), parts) == fingerprint(again, parts)
    assert fingerprint(bases(), parts) != fingerprint(other, parts)


def test_a_picture_that_is_another_one_is_refused(runs: Runs, tmp_path: Path) -> None:
    run = runs()
    wrong = replace(run.examples[0], width=128)
    with pytest.raises(ImageInvalid, match="expected 128 x 64"):
        train(replace(run, examples=[wrong, *run.examples[1:]]))
    gone = replace(run.examples[0], path=tmp_path / "gone.png")
    with pytest.raises(ImageInvalid, match="cannot be read"):
        train(replace(run, examples=[gone, *run.examples[1:]]))
