"""Encoders and denoiser are loaded in turn, and only what a job lacks is woken."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.errors import BaseModelUnavailable
from tests.training.conftest import MemoryPreviews
from training import families
from training.backends import resident
from training.backends.encodings import Encodings
from training.backends.local import train
from training.families import latents
from training.families.encoders import Encoders
from training.families.family import Base, Where
from training.families.weights.parts import load_part
from training.ports import Example, TrainRun
from training.tiny import base as tiny_base

Runs = Callable[..., TrainRun]
Bases = Callable[..., Path]
CPU = torch.device("cpu")
TEXT = {"sd15": ["text_encoder"], "sdxl": ["text_encoder", "text_encoder_2"], "z-image": ["text_encoder"]}
DENOISER = {"sd15": "unet", "sdxl": "unet", "z-image": "transformer"}


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts with weights that are loaded from now on, in order, with no base in memory."""
    parts: list[str] = []

    def noted(kind: object, folder: Path, part: str, dtype: torch.dtype | None = None) -> object:
        if dtype is not None:
            parts.append(part)
        return load_part(kind, folder, part, dtype)

    for module in ("sd15", "sdxl", "z_image"):
        monkeypatch.setattr(f"training.families.{module}.load_part", noted)
    monkeypatch.setattr(resident, "_resident", None)
    return parts


@pytest.fixture
def woken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The encoders that are woken from now on."""
    names: list[str] = []
    real = Encoders.awake

    @contextmanager
    def noted(self: Encoders, *asked: str) -> Iterator[None]:
        names.extend(asked)
        with real(self, *asked):
            yield

    monkeypatch.setattr(Encoders, "awake", noted)
    return names


@pytest.mark.parametrize("family", ["sd15", "sdxl", "z-image"])
def test_text_encoders_then_vae_then_denoiser(runs: Runs, tmp_path: Path, loaded: list[str], family: str) -> None:
    train(replace(runs(family, max_steps=1), encodings=tmp_path / "kept"))
    assert loaded == [*TEXT[family], "vae", DENOISER[family]]


@pytest.mark.parametrize("family", ["sd15", "sdxl", "z-image"])
def test_a_cold_job_whose_encodings_are_on_disk_loads_the_denoiser_alone(
    runs: Runs, tmp_path: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    first = train(replace(runs(family, name="first"), encodings=tmp_path / "kept"))
    loaded.clear()
    monkeypatch.setattr(resident, "_resident", None)
    assert train(replace(runs(family, name="second"), encodings=tmp_path / "kept")).sha256 == first.sha256
    assert loaded == [DENOISER[family]]


def test_a_warm_job_wakes_only_what_is_missing(runs: Runs, tmp_path: Path, woken: list[str]) -> None:
    def again() -> TrainRun:
        return replace(runs(max_steps=1, data={"flip": True, "caption_dropout": 0.5}), encodings=tmp_path / "kept")

    run = again()
    train(run)
    assert woken == ["text_encoder", "vae"]
    woken.clear()
    train(again())
    assert woken == []
    train(replace(again(), examples=[replace(example, caption="something else") for example in run.examples]))
    assert woken == ["text_encoder"]
    woken.clear()
    train(replace(again(), examples=[*run.examples[1:], replace(run.examples[0], sha256="0" * 64)]))
    assert woken == ["vae"]


def test_previews_wake_the_vae_alone(runs: Runs, tmp_path: Path, woken: list[str]) -> None:
    previews = MemoryPreviews()
    asked = {"previews": ["a dog"], "every_epochs": 1}
    for name in ("first", "second"):
        woken.clear()
        run = runs(name=name, max_steps=5, validation=asked, previews=previews)
        train(replace(run, encodings=tmp_path / "kept"))
    assert previews.held
    assert set(woken) == {"vae"}


def test_a_broken_denoiser_is_the_error_of_its_job(runs: Runs, bases: Bases, tmp_path: Path) -> None:
    base = tiny_base.make(tmp_path / "broken", "sd15", seed=5)
    for file in (base / "unet").glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BaseModelUnavailable, match="unet"):
        train(runs(base=base))


# ---- the VAE ----------------------------------------------------------------------------------------------------


def picture(folder: Path, width: int, height: int) -> Example:
    """A prepared picture with edges and shades."""
    chance = np.random.default_rng(width)
    coarse = Image.fromarray(chance.integers(0, 256, (8, 8, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    path = folder / f"{width}x{height}.png"
    coarse.save(path)
    return Example(path, "a", path.name, width, height)


def test_a_large_picture_is_encoded_and_decoded_in_tiles(
    bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny VAE at a tile of 64 pixels stands for a full one at 1024."""
    base = families.find("sd15").load(Where(bases("sd15"), CPU, torch.float32))
    example = picture(tmp_path, 160, 128)
    whole = latents.encode_pictures(base, [example])[0]
    seen: list[int] = []
    vae = base.encoders["vae"]
    vae.encoder.register_forward_pre_hook(lambda _, given: seen.append(max(given[0].shape[-2:])))
    vae.decoder.register_forward_pre_hook(lambda _, given: seen.append(max(given[0].shape[-2:]) * 8))
    monkeypatch.setattr(latents, "TILE", 64)
    in_tiles = latents.encode_pictures(base, [example])[0]
    assert in_tiles.shape == whole.shape
    latents.decoded(families.find("sd15"), base, [whole[:4]])
    assert len(seen) > 2
    assert max(seen) <= 64
    monkeypatch.setattr(latents, "TILE", 1024)
    assert torch.equal(latents.encode_pictures(base, [example])[0], whole)


def test_a_picture_is_encoded_alike_in_a_batch_to_rounding(bases: Bases, tmp_path: Path) -> None:
    base = families.find("sd15").load(Where(bases("sd15"), CPU, torch.float32))
    both = [picture(tmp_path, 96, 64), replace(picture(tmp_path, 96, 64), is_mirrored=True)]
    together = latents.encode_pictures(base, both)
    for one, example in zip(together, both, strict=True):
        assert torch.allclose(one, latents.encode_pictures(base, [example])[0], rtol=1e-4, atol=1e-4)


def test_pictures_are_batched_by_size_on_a_card_and_alone_where_bits_count(tmp_path: Path) -> None:
    wide, large = picture(tmp_path, 768, 512), picture(tmp_path, 1024, 1024)
    given = [wide, large, wide, wide, large]
    card = torch.device("cuda")
    assert [len(batch) for batch in latents.batches(given, card)] == [2, 1, 1, 1]
    assert [len(batch) for batch in latents.batches(given, CPU)] == [1] * 5


def test_beside_a_base_in_bfloat16_the_vae_works_in_it_within_a_bound(tmp_path: Path) -> None:
    """On a trained VAE: the pocket model's. Latents are off by less than a fiftieth of their own spread."""
    folder = Path("demo/pocket/model")
    base: dict[torch.dtype, Base] = {
        dtype: families.find("sd15").load(Where(folder, CPU, dtype)) for dtype in (torch.float32, torch.bfloat16)
    }
    example = picture(tmp_path, 128, 128)
    exact, close = (
        latents.encode_pictures(base[dtype], [example])[0].chunk(2)[0] for dtype in (torch.float32, torch.bfloat16)
    )
    off = (close - exact).pow(2).mean().sqrt() / exact.std()
    assert 0 < off < 0.02
    # What a base in float32 works with is what it was.
    assert base[torch.float32].encoders["vae"].dtype is torch.float32
    kept = Encodings(None, "a")
    assert torch.equal(
        kept.moments(families.find("sd15"), base[torch.float32], [example], lambda: None)[0].chunk(2)[0], exact
    )


# ---- a card -----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", ["sd15", "z-image"])
def test_parked_encoders_leave_a_card_as_it_was(bases: Bases, tmp_path: Path, family: str) -> None:
    card = torch.device("cuda")
    found = families.find(family)
    base = found.load(Where(bases(family), card, torch.bfloat16))
    example = picture(tmp_path, 64, 64)
    before = torch.cuda.memory_allocated(card)
    first = Encodings(None, "a").moments(found, base, [example], lambda: None)[0]
    assert torch.cuda.memory_allocated(card) == before
    assert not any(part.is_cuda for part in base.encoders["vae"].parameters())
    assert torch.equal(Encodings(None, "a").moments(found, base, [example], lambda: None)[0], first)
