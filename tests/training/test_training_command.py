"""`python -m training` as a person uses it: in a process of its own, to the file and to the exit code."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.servers.launcher import launcher, run
from training.__main__ import main, parse_spec, parser
from training.base_family import family_of_base
from training.lora import file as lora_file
from training.tiny import base as tiny_base

ROOT = Path(__file__).parents[2]
MASCOT = ROOT / "demo" / "pictures"
PAGE = ROOT / "docs" / "train-your-pictures.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures that pass the quality report, one with a caption, one that is none."""
    made = tmp_path_factory.mktemp("folder")
    for number in range(6):
        chance = np.random.default_rng(number)
        small = chance.integers(30, 226, (8, 8, 3), np.uint8)
        Image.fromarray(small).resize((160, 160), Image.Resampling.NEAREST).save(made / f"{number}.png")
    (made / "0.txt").write_text("wearing a hat\n")
    (made / "odd.jpg").write_bytes(b"no picture")
    (made / "notes.md").write_text("not a picture either")
    return made


Command = Callable[..., list[str]]


@pytest.fixture
def command(folder: Path, bases: Callable[..., Path], tmp_path: Path) -> Command:
    def build(*more: str, out: str = "lora.safetensors") -> list[str]:
        fixed = [str(folder), "--base-model", str(bases()), "--family", "sd15", "--trigger", "sks dog"]
        return [*fixed, "--resolution", "64", "--device", "cpu", "--out", str(tmp_path / out), *more]

    return build


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def test_end_to_end(command: Command, tmp_path: Path) -> None:
    more = ["--class-word", "dog", "--keep-checkpoints", "--checkpoint-every", "1"]
    arguments = command("--max-steps", "12", "--rank", "8", "--alpha", "16", *more)
    done = run(["training", *arguments], cwd=ROOT, env=ENVIRONMENT, folder=tmp_path, timeout=280)
    out, stderr = done.stdout, done.stderr
    assert done.returncode == 0, stderr
    report = lora_file.check_lora_file(tmp_path / "lora.safetensors", family="sd15", rank=8)
    assert report.alpha == 16.0
    assert report.sha256 in out
    assert "6 pictures, 12 steps" in stderr
    assert "left out picture 7 (odd.jpg): " in stderr
    assert "loss" in stderr
    assert "sks dog, wearing a hat" not in stderr  # captions are the owner's
    assert '"wearing a hat": 1' in report.metadata["ss_tag_frequency"]
    assert '"a photo of sks dog dog": 5' in report.metadata["ss_tag_frequency"]
    names = ["lora-step-00000006.safetensors", "lora.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    lora_file.check_lora_file(tmp_path / names[0], family="sd15", rank=8)


def test_the_page_shows_what_it_prints(tmp_path: Path) -> None:
    """To the letter, but for numbers and hashes, in fewer steps than on the page. From a new interpreter, as there."""
    shown = re.search(r"^```text\n(10 pictures.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert shown is not None
    arguments = ["--base-model", "sd15", "--trigger", "imp", "--class-word", "mascot", "--resolution", "64"]
    done = subprocess.run(
        [sys.executable, "-m", "training", str(MASCOT), *arguments, "--max-steps", "4", "--out", "imp.safetensors"],
        cwd=tmp_path, capture_output=True, text=True, timeout=280, check=True,
        env={
            **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "80", "CUDA_VISIBLE_DEVICES": "",
            "IMPRINT_BASE_MODELS": json.dumps({"sd15": str(ROOT / "demo" / "pocket" / "model")}),
        },
    )  # fmt: skip

    def masked(text: str) -> list[str]:
        text = re.sub(r"sha256 [0-9a-f]{64}", "sha256 #", text.replace("200", "4"))
        return [re.sub(r"[\d.:]*\d|━+", "#", line) for line in text.splitlines()]

    assert masked(done.stderr + done.stdout) == masked(shown[1])


def test_ctrl_c_keeps_a_checkpoint_and_the_same_command_goes_on(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ("--max-steps", "60", "--checkpoint-every", "1")
    log = tmp_path / "log"
    with log.open("wb") as out:
        arguments = ["training", *command(*recipe, out="part.safetensors")]
        part = launcher().start(arguments, cwd=ROOT, env=ENVIRONMENT, stdout=out.fileno(), stderr=out.fileno())
    kept = tmp_path / "part.safetensors.checkpoints"
    deadline = time.monotonic() + 240
    while not list(kept.glob("step-*.safetensors")):
        assert part.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    part.send_signal(signal.SIGINT)
    assert part.wait(120) == 130
    assert "To resume:" in log.read_text()
    assert "--checkpoint-every 1" in log.read_text()
    assert not (tmp_path / "part.safetensors").exists()
    assert main(command(*recipe, out="part.safetensors")) == 0
    assert "resumed at step" in " ".join(capsys.readouterr().err.split())
    assert not kept.exists()
    assert main(command(*recipe, out="whole.safetensors")) == 0
    assert (tmp_path / "part.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--rank", "0", "--resolution", "65"], ["--rank", "--resolution"]),
        (["--family", "sdxl", "--base-model", "sd15"], ["is of family sd15"]),
        (["--checkpoint-every", "0"], ["--checkpoint-every"]),
        (["--trigger", ""], ["--trigger"]),
    ],
)
def test_wrong_arguments_are_all_named(
    command: Command, capsys: pytest.CaptureFixture[str], more: list[str], named: list[str]
) -> None:
    assert main(command(*more)) == 2
    stderr = " ".join(capsys.readouterr().err.split())
    assert all(words in stderr for words in named)


# ---- what would be found out only after hours ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "content"),
    [
        (["--out", "{tmp}/file/lora.safetensors"], ["--out: cannot be written", "file is not a folder"]),
        (["--out", "{tmp}/lora.ckpt"], ["--out: must end in .safetensors"]),
        (["--out", "{tmp}/" + "x" * 250 + ".safetensors"], ["--out: cannot be written", "File name too long"]),
        (["--out", "{tmp}"], ["--out: is a folder"]),
        (["--resume-dir", "{tmp}/file/kept"], ["--resume-dir: cannot be written"]),
        (["--optimizer", "prodigy", "--learning-rate", "0.0001"], ["--learning-rate:", "0.0001 multiplies the rate"]),
    ],
    ids=["a file as folder", "suffix", "long", "folder", "checkpoints", "prodigy"],
)
def test_what_cannot_end_well_is_refused_before_the_first_step(
    command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path, more: list[str], content: list[str]
) -> None:
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    assert main(command(*(argument.format(tmp=tmp_path) for argument in more))) == 2
    stderr = " ".join(capsys.readouterr().err.split())
    assert all(words in stderr for words in content), stderr
    assert sorted(tmp_path.iterdir()) == before


def test_a_changed_option_keeps_the_old_checkpoints_and_says_why(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "lora.safetensors.checkpoints"
    fewer, more = (
        [*command("--max-steps", number, "--checkpoint-every", "1"), "--resume-dir", str(kept)]
        for number in ("12", "18")
    )
    assert main(fewer) == 0
    first = (tmp_path / "lora.safetensors").read_bytes()
    steps = sorted(path.name for path in kept.glob("step-*"))
    capsys.readouterr()
    assert main(more) == 0
    message = " ".join(capsys.readouterr().err.split())
    assert "restarts at step 0, because of other max_steps (12, now 18); the checkpoint of step 12 is in" in message
    assert "resumed" not in message
    [aside] = [path for path in kept.iterdir() if path.is_dir()]
    assert sorted(path.name for path in aside.glob("step-*")) == steps
    assert [int(path.stem[5:]) for path in sorted(kept.glob("step-*"))][-1] == 18
    (tmp_path / "lora.safetensors").unlink()
    assert main(fewer) == 0  # with the old options it goes on where it was, here at its end
    assert "resumed at step 12" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "lora.safetensors").read_bytes() == first


def test_checkpoints_of_an_older_version_say_themselves_whose_they_are(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    common = ("--checkpoint-every", "1", "--resume-dir", str(kept))
    assert main(command("--max-steps", "6", *common)) == 0
    (kept / "options.json").unlink()
    assert main(command("--max-steps", "6", *common)) == 0
    assert "resumed at step 6" in " ".join(capsys.readouterr().err.split())
    (kept / "options.json").unlink(missing_ok=True)
    assert main(command("--max-steps", "12", *common)) == 0
    assert "because of other options or pictures" in " ".join(capsys.readouterr().err.split())
    assert list((kept / "older").glob("step-*"))


def test_a_training_that_changed_nothing_says_so(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("--max-steps", "1", "--learning-rate", "0.0000001")) == 0
    assert "note: it changes almost nothing" in " ".join(capsys.readouterr().err.split())


def test_files_that_are_not_used_are_noted(
    command: Command, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    theirs = shutil.copytree(folder, tmp_path / "theirs")
    (theirs / "other.caption").write_text("a red ball")
    assert main([str(theirs), *command("--max-steps", "1")[1:]]) == 0
    message = " ".join(capsys.readouterr().err.split())
    assert "note: no picture has the name of these captions: other.caption" in message


def test_a_base_model_on_this_machine_tells_its_family(bases: Callable[..., Path], tmp_path: Path) -> None:
    for family in ("sd15", "sdxl", "z-image"):
        given = parser().parse_args(
            [".", "--base-model", str(bases(family)), "--trigger", "x", "--out", "x.safetensors"]
        )
        assert parse_spec(given).family == family
    assert family_of_base(str(tmp_path)) is None
    assert family_of_base("owner/model") is None


def test_wrong_folders(command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(tmp_path / "none"), *command()[1:]]) == 2
    assert "is not a folder" in " ".join(capsys.readouterr().err.split())
    few = tmp_path / "few"
    few.mkdir()
    Image.new("RGB", (160, 160)).save(few / "flat.png")
    assert main([str(few), *command()[1:]]) == 2
    stderr = capsys.readouterr().err
    assert "too_few_images" in stderr
    assert "flat.png" in stderr


def test_a_missing_base_model_is_a_failure(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("--base-model", "/nowhere/model", "--max-steps", "1")) == 1
    assert "base_model_unavailable" in capsys.readouterr().err


def test_tiny_base_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tmp_path / "base"), "--family", "z-image"]
    assert tiny_base.main(arguments) == 0
    assert "was there already" not in capsys.readouterr().out
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "base").rglob("*") if path.is_file()}
    assert modes == {0o644}, "workers may run as another user"
    stamp = (tmp_path / "base" / "model_index.json").stat().st_mtime_ns
    assert tiny_base.main(arguments) == 0
    assert "was there already" in capsys.readouterr().out
    assert (tmp_path / "base" / "model_index.json").stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    assert sum(path.stat().st_size for path in (tmp_path / "base").rglob("*") if path.is_file()) < 16e6
