"""The captioner on this machine: found, refused by name, and run from the command line and beside others."""

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.caption import caption
from core.errors import BaseModelUnavailable, Cancelled
from tests.site import drawing
from training.__main__ import main
from training.captioning import weights
from training.captioning.captioner import CaptionOrder, write_captions
from training.lora.reading import read_lora
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


def test_a_training_without_a_queue_has_captions_written(
    folder: Path, pictures: Path, bases: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are kept beside the LoRA, in a file that people can change: the next run asks for nothing twice."""
    for number in range(3, 6):
        drawing(pictures / f"{number}.png", number)
    (pictures / "1.txt").write_text("my own words about sks")
    out = tmp_path / "out" / "lora.safetensors"
    command = [
        *(str(pictures), "--base-model", str(bases()), "--trigger", "sks", "--class-word", "dog", "--out", str(out)),
        *("--resolution", "64", "--max-steps", "1", "--device", "cpu", "--captions", "auto"),
    ]
    assert main(command) == 2
    assert "--captioner" in " ".join(capsys.readouterr().err.split())
    weights_of_it = shutil.copytree(folder, tmp_path / "captioner")
    command += ["--captioner", str(weights_of_it)]
    assert main(command) == 0
    kept = out.with_name("lora.safetensors.captions.jsonl")
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [line["file_name"] for line in lines] == [f"{number}.png" for number in (0, 2, 3, 4, 5)]
    tags = read_lora(out).metadata["ss_tag_frequency"]
    assert all(line["text"].startswith("sks dog, ") for line in lines)
    assert all(tag.strip() in tags for line in lines for tag in line["text"].split(","))
    assert "my own words about sks" in tags
    lines[0]["text"] = "sks dog, as I see it"
    kept.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    shutil.rmtree(weights_of_it)
    assert main(command) == 0
    assert "as I see it" in read_lora(out).metadata["ss_tag_frequency"]
