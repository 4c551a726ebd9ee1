"""A family in one file goes the whole way: submit, train, file, inspect, convert, generate, page and docs.

`tests/made_up_family.py` is that file. Nothing else in the repository names the family.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from core.errors import LoraInvalid, SpecInvalid
from core.settings import Settings
from fakes.comfyui import loras
from jobs import service
from jobs.requests import quotes, training_request
from jobs.results import in_comfyui
from jobs.stages import preprocessing, steps
from tests.contract.web.conftest import Api, make_api
from tests.made_up_family import FAR_AWAY, MADE_UP, registered
from tests.training.checkpoints import exported
from training import sample
from training.base_family import family_of_base
from training.lora.formats import serialize_as
from training.lora.inspect import inspect
from training.lora.reading import read_lora
from training.tiny import base as tiny_base

ROOT = Path(__file__).resolve().parents[3]
REQUEST: dict[str, Any] = {"owner_id": "ada", "subject_id": "rex", "trigger_word": "sks", "base_model": "made-up-1"}


@pytest.fixture(scope="module")
def images(lone_api: Api) -> list[str]:
    return lone_api.upload(lone_api.token("ada"))


@pytest.fixture
def made_up() -> Iterator[None]:
    with registered(MADE_UP):
        yield


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What writes the tables of the docs and the files in `deploy/`."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("tables")


@contextmanager
def at(home: Path, base: Path) -> Iterator[Api]:
    yield from make_api(Settings(_env_file=None, home=home, base_models={"made-up-1": str(base)}))


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("is_one_file", [False, True])
def test_it_is_submitted_trained_read_converted_and_drawn_with(is_one_file: bool, tmp_path: Path) -> None:
    base = folder = tiny_base.make(tmp_path / "base", "made-up")
    if is_one_file:
        base = exported(folder, tmp_path / "base.safetensors", "made-up")
    assert family_of_base(str(base)) == "made-up"
    with at(tmp_path / "home", base) as api:
        path = trained(api, tmp_path / "lora.safetensors")
    seen = inspect(path)
    assert (seen.family, seen.verdict) == ("made-up", "sound")
    assert {module.rank for module in read_lora(path).modules.values()} == {6}
    assert (seen.readers["diffusers"], seen.readers["ComfyUI"]) == ("whole", "whole")
    used, missed = loras.match([key for key in loras.header(path) if key != "__metadata__"], "made-up")
    assert (len(used), missed) == (12, [])
    assert inspect(serialize_as(read_lora(path), "comfyui")).family == "made-up"
    with pytest.raises(LoraInvalid, match="no program reads kohya's names of it"):
        serialize_as(read_lora(path), "kohya")
    given: dict[str, Any] = {"steps": 2, "size": (64, 64), "device": "cpu"}
    drawn = [sample.draw(str(base), "made-up", ["a cat"], [1], lora=lora, **given)[0] for lora in (None, path)]
    assert not np.array_equal(*(np.asarray(picture) for picture in drawn))


def trained(api: Api, path: Path) -> Path:
    """The file of a job that went through every stage, by the functions that the tasks call."""
    pictures = api.upload(api.token("ada"))
    view = service.submit(api.services, REQUEST | {"images": pictures, "max_steps": 2})
    for position in range(len(pictures)):
        preprocessing.preprocess(api.services, view.job_id, position)
    for step in (steps.dataset, steps.train, steps.upload, steps.settle):
        step(api.services, view.job_id)
    done = service.get(api.services, view.job_id)
    assert (done.status, done.credits.charged) == ("ready", 1)
    service.download(api.services, view.job_id, path)
    found = in_comfyui.workflow_of(api.services, view.job_id, "ada")
    assert found is not None
    assert found[1]["10"]["inputs"]["unet_name"] == "made_up.safetensors"
    return path


@pytest.mark.usefixtures("made_up")
def test_it_is_offered_priced_and_documented(lone_api: Api, images: list[str], tables: ModuleType) -> None:
    asked = REQUEST | {"images": images}
    quote = quotes.quote(lone_api.services, asked | {"max_steps": 1000})
    assert (quote.credits, quote.licence) == (77, "MUP-1.0: no cats")
    view = service.submit(lone_api.services, asked | {"max_steps": 10})
    assert (view.spec.family, view.spec.rank, view.spec.alpha, view.spec.backend) == ("made-up", 6, 6.0, "local")
    assert "Made up 1" in page(lone_api)
    assert "| peft | diffusers, ComfyUI |" in next(
        line for line in tables.base_models().splitlines() if line.startswith("| `made-up-1`")
    )
    files = dict(tables.kubernetes_files.files(ROOT / "deploy" / "kubernetes", ROOT / "docs"))
    assert "name: train-made-up" in files[ROOT / "deploy" / "kubernetes" / "train-made-up.yaml"]
    assert "  - train-made-up.yaml" in files[ROOT / "deploy" / "kubernetes" / "kustomization.yaml"]
    assert "listName: train.made-up" in files[ROOT / "deploy" / "kubernetes" / "scaling.yaml"]


def page(api: Api) -> str:
    """The page of a subject, with its choice of base models."""
    signed_in = api.token("ada")
    api.client.cookies.clear()
    answer = api.call("POST", "/sign-in", headers={"origin": "http://testserver"}, data={"token": signed_in})
    assert answer.status_code < 400, answer.text
    return api.call("GET", "/subjects/rex").text


def test_a_family_without_code_trains_only_on_rented_gpus(lone_api: Api, images: list[str]) -> None:
    asked = REQUEST | {"images": images}
    with registered(FAR_AWAY):
        with pytest.raises(SpecInvalid) as refused:
            service.submit(lone_api.services, asked | {"backend": "local"})
        assert set(refused.value.faults) == {"backend"}
        assert "only on rented GPUs" in refused.value.faults["backend"]
        # Without a backend it is sent to rented GPUs, of which this installation has none.
        with pytest.raises(SpecInvalid, match="no ai-toolkit server is configured"):
            service.submit(lone_api.services, asked)


@pytest.mark.usefixtures("made_up")
def test_a_family_that_is_switched_off_is_refused_and_not_offered(lone_api: Api, images: list[str]) -> None:
    here = lone_api.services
    settings = here.settings.model_copy(update={"disabled_families": ["made-up"]})
    with pytest.raises(SpecInvalid, match="made-up is switched off"):
        training_request.parse(REQUEST | {"images": images}, settings, here.sources)
