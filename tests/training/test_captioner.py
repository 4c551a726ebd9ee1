"""The captioner on this machine: found, refused by name, and run from the command line and beside others."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.caption import caption
from core.errors import BaseModelUnavailable, Cancelled
from tests.site import drawing
from training.captioning import weights
from training.captioning.captioner import CaptionOrder, write_captions
from training.tiny import captioner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captioner.make(tmp_path_factory.mktemp("captioner") / "tiny")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(3):
        drawing(tmp_path / f"{number}.png", number)
    return tmp_path


def test_a_folder_gets_text_files_beside_its_pictures(folder: Path, pictures: Path) -> None:
    (pictures / "1.txt").write_text("my own words")
    (pictures / "broken.jpg").write_bytes(b"x")
    arguments = [str(pictures), "--trigger", "sks", "--class-word", "dog", "--captioner", str(folder), "--json"]
    done = CliRunner().invoke(caption, arguments)
    assert done.exit_code == 0, done.output
    assert [one["picture"] for one in json.loads(done.stdout)] == ["0.png", "2.png"]
    assert "broken.jpg" in done.stderr
    assert (pictures / "1.txt").read_text() == "my own words"
    assert (pictures / "0.txt").read_text().startswith("sks dog, ")
    assert (pictures / "0.txt").read_text() != (pictures / "2.txt").read_text()


def test_weights_that_are_none_are_named(folder: Path, tmp_path: Path) -> None:
    assert weights.locate(str(folder)) == folder
    for location, reason in (
        (str(tmp_path / "nowhere"), "no such folder"),
        (str(tmp_path), "no readable config.json"),
    ):
        with pytest.raises(BaseModelUnavailable, match=reason):
            weights.locate(location)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(BaseModelUnavailable, match=r"is a bert; IMPRINT_CAPTIONER takes Florence-2"):
        weights.locate(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "florence2"}')
    for name in ("tokenizer.json", "preprocessor_config.json", "model.safetensors"):
        with pytest.raises(BaseModelUnavailable, match=name):
            weights.locate(str(tmp_path))
        (tmp_path / name).write_text("{}")
    with pytest.raises(BaseModelUnavailable, match="cannot be loaded"):
        write_captions(CaptionOrder(str(tmp_path), "", {"a": tmp_path / "a.png"}, "cpu"), lambda: None, lambda _: None)


def test_two_jobs_take_turns_and_one_that_is_cancelled_keeps_what_was_said(folder: Path, pictures: Path) -> None:
    order = CaptionOrder(str(folder), "", {str(n): pictures / f"{n}.png" for n in range(3)}, "cpu")
    said: dict[str, dict[str, str]] = {"first": {}, "second": {}, "cancelled": {}}

    def save(name: str, texts: Mapping[str, str]) -> None:
        said[name].update(texts)

    jobs = [
        threading.Thread(target=write_captions, args=(order, lambda: None, lambda texts, name=name: save(name, texts)))
        for name in ("first", "second")
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert said["first"] == said["second"]
    assert set(said["first"]) == {"0", "1", "2"}

    def check() -> None:
        if said["cancelled"]:
            raise Cancelled("the owner cancelled")

    with pytest.raises(Cancelled):
        write_captions(order, check, lambda texts: save("cancelled", texts))
    assert said["cancelled"] == {"0": said["first"]["0"]}
