"""A base model in one file is the same model: name for name, weight for weight, LoRA for LoRA."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file

from core.errors import BaseModelUnavailable
from tests.families import LOCAL
from tests.training.checkpoints import exported
from training import families, sample
from training.backends.local import train
from training.base_family import family_of_base
from training.families.family import Base, FamilyCode, Where
from training.families.registry import FAMILIES
from training.families.weights import single_file
from training.families.weights.fingerprint import fingerprint
from training.families.weights.parts import class_of, locate
from training.lora.safetensor import unpack
from training.ports import TrainRun

Runs = Callable[..., TrainRun]
Bases = Callable[..., Path]
CPU = torch.device("cpu")
lib: Any = diffusers
utils: Any = single_file_utils


@pytest.fixture(scope="module")
def single(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny base model of a family in one file, made once."""
    folder = tmp_path_factory.mktemp("single")

    def make(family: str) -> Path:
        out = folder / f"{family}.safetensors"
        return out if out.exists() else exported(bases(family), out, family)

    return make


@pytest.mark.parametrize("family", [*LOCAL, "sd35-medium"])
def test_it_tells_its_family(family: str, single: Callable[[str], Path], tmp_path: Path) -> None:
    assert family_of_base(str(single(family))) == family
    other = tmp_path / "other.safetensors"
    save_file({"encoder.conv_in.weight": torch.zeros(1)}, other)
    assert family_of_base(str(other)) is None


@pytest.mark.parametrize("family", ["flux2-klein-9b", "sd35-medium"])
def test_a_folder_tells_the_size_of_its_model(family: str, tmp_path: Path) -> None:
    """Sizes of one model are families with one pipeline."""
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": FAMILIES[family].pipeline}))
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(FAMILIES[family].configs["transformer"]))
    assert family_of_base(str(tmp_path)) == family


@pytest.mark.parametrize(("family", "part"), [("sd15", ""), ("sdxl", ""), ("sdxl", "_2")])
@pytest.mark.parametrize("longest", [64, None])
def test_a_tokenizer_of_another_model_is_refused(
    family: str, part: str, longest: int | None, bases: Bases, runs: Runs, tmp_path: Path
) -> None:
    base = shutil.copytree(bases(family), tmp_path / "base")
    config = base / f"tokenizer{part}" / "tokenizer_config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "model_max_length": longest} if longest else without(content)))
    with pytest.raises(BaseModelUnavailable, match=r"text encoder reads 77 tokens .*: they are of different models"):
        train(runs(family, base=base))
    with pytest.raises(BaseModelUnavailable, match="they are of different models"):
        sample.load_pipeline(str(base), family, CPU)


def without(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != "model_max_length"}


def test_a_folder_of_stable_diffusion_2_is_refused(bases: Bases, runs: Runs, tmp_path: Path) -> None:
    base = shutil.copytree(bases("sd15"), tmp_path / "base")
    config = base / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_linear_projection": True}))
    with pytest.raises(BaseModelUnavailable, match="is a Stable Diffusion 2, which is not supported"):
        train(runs("sd15", base=base))


@pytest.mark.parametrize("family", LOCAL)
def test_every_weight_is_the_folders(family: str, bases: Bases, single: Callable[[str], Path]) -> None:
    found = families.find(family)
    one = found.load(Where(locate(str(single(family)), found.parts), CPU, torch.float32))
    other = found.load(Where(bases(family), CPU, torch.float32))
    parts = {"denoiser": one.denoiser, **one.encoders}
    assert set(one.encoders) == set(other.encoders)
    twins = {"denoiser": other.denoiser, **other.encoders}
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module):
            wanted, held = twins[name].state_dict(), part.state_dict()
            assert set(held) == set(wanted)
            assert all(torch.equal(held[key], wanted[key]) for key in wanted)
            assert not any(parameter.requires_grad for parameter in part.parameters())
            # Aligned, wherever the files have them: kernels choose by that in which order they sum.
            assert not any(weights.data_ptr() % 64 for weights in (*held.values(), *wanted.values()))
    assert one.prediction == other.prediction


@pytest.mark.parametrize("family", LOCAL)
def test_a_training_on_it_gives_the_same_lora(family: str, runs: Runs, single: Callable[[str], Path]) -> None:
    run = runs(family, max_steps=2, count=2)
    folder = train(run)
    file = train(replace(run, base_model=str(single(family)), out=run.out.with_name("b.safetensors")))
    (one, metadata), (other, other_metadata) = (unpack(made.path.read_bytes()) for made in (folder, file))
    assert all(np.array_equal(one[name].elements, other[name].elements) for name in one)
    assert metadata["imprint_base_sha256"] != other_metadata["imprint_base_sha256"]  # checkpoints do not mix


@pytest.mark.parametrize("family", LOCAL)
def test_it_draws_the_same_picture(family: str, bases: Bases, single: Callable[[str], Path]) -> None:
    given: dict[str, Any] = {"steps": 2, "size": (64, 64), "device": "cpu"}
    drawn = [sample.draw(str(base), family, ["a dog"], [1], **given)[0] for base in (bases(family), single(family))]
    levels = np.subtract(*(np.asarray(picture, int) for picture in drawn))
    # diffusers leaves the folder's weights where they are in the file, and kernels choose their order by alignment.
    assert np.abs(levels).max() <= 1


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_diffusers_own_converter_finds_the_same_names(family: str, bases: Bases, single: Callable[[str], Path]) -> None:
    """The names in our files are those of real checkpoints: diffusers reads them into the same weights."""
    checkpoint = load_file(single(family))
    for part, convert in (("unet", utils.convert_ldm_unet_checkpoint), ("vae", utils.convert_ldm_vae_checkpoint)):
        config = json.loads((bases(family) / part / "config.json").read_text())
        same(convert(dict(checkpoint), config), load_file(next((bases(family) / part).glob("*.safetensors"))))
    text = utils.convert_ldm_clip_checkpoint(dict(checkpoint))
    same({name.removeprefix("text_model."): part for name, part in text.items()}, text_of(bases(family), ""))


def test_diffusers_own_converter_finds_openclips_names(bases: Bases, single: Callable[[str], Path]) -> None:
    model = lib.StableDiffusionXLPipeline.from_pretrained(bases("sdxl")).text_encoder_2
    checkpoint = load_file(single("sdxl"))
    converted = utils.convert_open_clip_checkpoint(model, checkpoint, prefix="conditioner.embedders.1.model.")
    same(converted, text_of(bases("sdxl"), "_2"))


def test_diffusers_own_converter_finds_z_images_names(bases: Bases, single: Callable[[str], Path]) -> None:
    checkpoint = {
        name: part for name, part in load_file(single("z-image")).items() if name.startswith("model.diffusion_model.")
    }
    wanted = load_file(next((bases("z-image") / "transformer").glob("*.safetensors")))
    same(utils.convert_z_image_transformer_checkpoint_to_diffusers(checkpoint), wanted)


def same(held: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert set(held) >= set(wanted)
    assert all(torch.equal(held[name].reshape(wanted[name].shape), wanted[name]) for name in wanted)


def test_a_file_without_guidance_is_schnell(bases: Bases, tmp_path: Path) -> None:
    """Its network takes no guidance scale, draws in four steps and reads shorter captions."""
    base = shutil.copytree(bases("flux1"), tmp_path / "base")
    config = base / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "guidance_embeds": False}))
    weights = next((base / "transformer").glob("*.safetensors"))
    save_file({name: one for name, one in load_file(weights).items() if "guidance" not in name}, weights)
    file = exported(base, tmp_path / "s.safetensors", "flux1")
    (file.with_suffix(".parts") / "transformer" / "config.json").rename(tmp_path / "beside.json")
    assert single_file.read(file).config("transformer") == {"guidance_embeds": False}
    (tmp_path / "beside.json").rename(file.with_suffix(".parts") / "transformer" / "config.json")
    found = families.find("flux1")
    loaded = found.load(Where(locate(str(file), found.parts), CPU, torch.float32))
    assert (loaded.schedule.is_guided, loaded.drawing) == (False, (4, 1.0))
    assert "is trained without its training adapter" in loaded.warnings[0]
    caption = "a dog " * 150
    dev = found.load(Where(bases("flux1"), CPU, torch.float32))
    assert (found.reads_whole(loaded, caption), found.reads_whole(dev, caption)) == (False, True)


def test_a_model_that_also_takes_a_picture_is_refused(bases: Bases, tmp_path: Path) -> None:
    base = shutil.copytree(bases("flux1"), tmp_path / "fill")
    config = base / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 384}))
    with pytest.raises(BaseModelUnavailable, match=r"also takes a picture, such as FLUX\.1 Fill"):
        families.find("flux1").load(Where(base, CPU, torch.float32))


def test_diffusers_converter_of_flux2_finds_the_same_weights(bases: Bases, single: Callable[[str], Path]) -> None:
    names = {
        name.removeprefix("model.diffusion_model."): part for name, part in load_file(single("flux2-klein-4b")).items()
    }
    wanted = load_file(next((bases("flux2-klein-4b") / "transformer").glob("*.safetensors")))
    same(utils.convert_flux2_transformer_checkpoint_to_diffusers(names), wanted)


def text_of(folder: Path, number: str) -> dict[str, torch.Tensor]:
    return load_file(folder / f"text_encoder{number}" / "model.safetensors")


# Parameters of the published models.
SIZES = {
    ("sd15", "unet"): 859_520_964,
    ("sd15", "vae"): 83_653_863,
    ("sd15", "text_encoder"): 123_060_480,
    ("sdxl", "unet"): 2_567_463_684,
    ("sdxl", "text_encoder_2"): 694_659_840,
    ("z-image", "transformer"): 6_154_908_736,
    ("flux2-klein-4b", "transformer"): 3_875_544_576,
    ("flux2-klein-9b", "transformer"): 9_078_581_248,
    ("qwen-image", "transformer"): 20_430_401_088,
    ("qwen-image-21", "transformer"): 7_115_124_736,
    ("flux1", "transformer"): 11_901_408_320,
    ("chroma", "transformer"): 8_899_983_424,
    ("sd35-large", "transformer"): 8_056_627_520,
    ("sd35-medium", "transformer"): 2_243_171_520,
    ("z-image", "vae"): 83_819_683,
    ("z-image", "text_encoder"): 4_022_468_096,
}


# Families whose converter in diffusers is checked row by row, with its name there.
CONVERTED = {
    "flux1": "flux", "chroma": "chroma", "sd35-large": "sd3", "sd35-medium": "sd3", "qwen-image-21": "qwen_image21",
}  # fmt: skip


@pytest.mark.parametrize(("family", "part"), list(SIZES))
def test_shapes_of_the_published_models(family: str, part: str) -> None:
    """Our configurations make the models that the families are named for, and no two weights come from one tensor."""
    config = FAMILIES[family].configs[part]
    with torch.device("meta"):
        network = single_file.empty(class_of(FAMILIES[family].classes[part]), config)
    assert sum(weights.numel() for weights in network.parameters()) == SIZES[family, part]
    layout = FAMILIES[family].single_file
    assert layout is not None
    sources = [layout.sources[part](name, config) for name in network.state_dict()]
    assert len(set(sources)) == len(sources)
    if part in ("unet", "transformer"):
        prefix = "model.diffusion_model."
        names = dict.fromkeys((prefix + found.name for found in sources), torch.zeros(3, 1))
        if part == "unet":
            back = utils.convert_ldm_unet_checkpoint(names, config)
        elif family == "z-image":
            back = utils.convert_z_image_transformer_checkpoint_to_diffusers(names)
        elif family in CONVERTED:
            convert = getattr(utils, f"convert_{CONVERTED[family]}_transformer_checkpoint_to_diffusers")
            back = rows_converted(network, layout.sources[part], config, convert)
        elif family == "qwen-image":
            back = {found.name: None for found in sources}  # diffusers' own names
        else:
            names = {name.removeprefix(prefix): part for name, part in names.items()}
            back = utils.convert_flux2_transformer_checkpoint_to_diffusers(names)
        assert set(back) == set(network.state_dict())


def rows_converted(network: Any, source: Any, config: Any, convert: Any) -> dict[str, torch.Tensor]:
    """diffusers' converter has the published widths written in, so each tensor is the numbers of its rows."""
    wanted, file = {}, {}
    for name, weights in network.state_dict().items():
        found, count = source(name, config), weights.shape[0]
        begin, end, shares = found.rows or (0, 1, 1)
        total = count * shares // (end - begin)
        rows = file.setdefault(found.name, torch.arange(total))[total * begin // shares : total * end // shares]
        wanted[name] = torch.cat(rows.chunk(2)[::-1]) if found.is_swapped else rows
    back: dict[str, torch.Tensor] = convert(file)
    same(back, wanted)
    return back


# ---- what a file says of itself, and what it lacks ---------------------------------------------------------------


def test_v_prediction_is_read_from_the_file(bases: Bases, tmp_path: Path) -> None:
    def prediction(file: Path) -> str:
        shutil.rmtree(file.with_suffix(".parts") / "scheduler")  # ours, with what the file says
        found = families.find("sdxl")
        return found.load(Where(locate(str(file), found.parts), CPU, torch.float32)).prediction

    assert prediction(exported(bases("sdxl"), tmp_path / "e.safetensors", "sdxl")) == "epsilon"
    metadata = {"modelspec.prediction_type": "v"}
    marked = exported(bases("sdxl"), tmp_path / "v.safetensors", "sdxl", **metadata)
    assert prediction(marked) == "v_prediction"
    held = load_file(exported(bases("sdxl"), tmp_path / "k.safetensors", "sdxl"))
    save_file({**held, "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, tmp_path / "k.safetensors")
    found = families.find("sdxl")
    shutil.rmtree(tmp_path / "k.parts" / "scheduler")
    schedule = found.load(Where(tmp_path / "k.safetensors", CPU, torch.float32)).schedule
    assert schedule.prediction == "v_prediction"
    assert schedule.alphas[-1] == pytest.approx(0.0, abs=1e-6)  # noise alone at the end


def test_a_denoiser_alone_with_the_rest_beside_it(runs: Runs, bases: Bases, tmp_path: Path) -> None:
    """As ComfyUI ships Z-Image: the transformer, without a prefix to its names."""
    file = exported(bases("z-image"), tmp_path / "z.safetensors", "z-image", only=("transformer",))
    save_file({name.removeprefix("model.diffusion_model."): part for name, part in load_file(file).items()}, file)
    assert train(runs("z-image", base=file, max_steps=1)).steps == 1


def test_a_vae_beside_the_file_takes_the_place_of_its_own(bases: Bases, tmp_path: Path) -> None:
    file = exported(bases("sd15"), tmp_path / "a.safetensors", "sd15")
    before = fingerprint(file, families.find("sd15").parts)
    shutil.copytree(bases("sd15") / "vae", tmp_path / "a.parts" / "vae", dirs_exist_ok=True)
    weights = tmp_path / "a.parts" / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: part + 1 for name, part in load_file(weights).items()}, weights)
    base = families.find("sd15").load(Where(file, CPU, torch.float32))
    wanted = load_file(weights)
    assert all(torch.equal(part, wanted[name]) for name, part in base.encoders["vae"].state_dict().items())
    assert fingerprint(file, families.find("sd15").parts) != before


def test_a_tokenizer_that_is_nowhere_is_told_with_what_to_do(
    bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    file = exported(bases("sd15"), tmp_path / "a.safetensors", "sd15")
    shutil.rmtree(tmp_path / "a.parts" / "tokenizer")
    with pytest.raises(BaseModelUnavailable) as raised:
        families.find("sd15").load(Where(file, CPU, torch.float32)).encoders["tokenizer"]
    assert "has no tokenizer" in raised.value.message
    assert str(tmp_path / "a.parts" / "tokenizer") in raised.value.message


def test_of_another_family(bases: Bases, single: Callable[[str], Path]) -> None:
    for family, other in (("sd15", "sdxl"), ("sdxl", "sd15"), ("sd15", "z-image")):
        found = families.find(family)
        with pytest.raises(BaseModelUnavailable, match=f"of family {other}|not one of sd15"):
            load(found, single(other))


def load(found: FamilyCode, file: Path) -> Base:
    return found.load(Where(locate(str(file), found.parts), CPU, torch.float32))
