"""Mask files through every door and by hand: the same folder, the same bytes of the LoRA."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from sqlmodel import select

from storage.tables.pictures import StoredPicture
from tasks.rabbitmq.model_training import parse_message
from tests.integration.test_web import Client
from tests.servers.launcher import run
from tests.site import MASCOT, ROOT, Site, View, site

NAMES = [path.name for path in sorted(MASCOT.glob("*.png"))[:6]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures, some with captions, four of them with masks: of the same size, smaller, in colour, all black."""
    made = tmp_path_factory.mktemp("folder") / "mascot"
    (made / "masks").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        shutil.copy(MASCOT / name, made)
        if number % 2:
            shutil.copy((MASCOT / name).with_suffix(".txt"), made)
    for number, (suffix, mode, scale) in enumerate(
        [("png", "L", 1), ("jpg", "RGB", 1), ("webp", "L", 2), ("png", "1", 1)]
    ):
        with Image.open(made / NAMES[number]) as picture:
            width, height = picture.width // scale, picture.height // scale
        mask = Image.new(mode, (width, height))
        if mode != "1":
            ImageDraw.Draw(mask).ellipse((width // 4, height // 4, width // 2, height // 2), fill="white")
        mask.save(made / "masks" / f"{Path(NAMES[number]).stem}.{suffix}")
    return made


@pytest.fixture(scope="module")
def running(base_model: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    roots = json.dumps([str(folder)])
    with site(tmp_path_factory.mktemp("site"), base_model, IMPRINT_FILE_ROOTS=roots) as made:
        made.grant("ada")
        made.start("web")
        yield made


@pytest.fixture(scope="module")
def by_hand(running: Site, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, str]:
    """The SHA-256 of what `python -m training` makes of the folder, with a masked loss and without."""
    out = tmp_path_factory.mktemp("out")
    return {masked: trained_by_hand(running, folder, out / f"{masked}.safetensors", masked) for masked in (True, False)}


def trained_by_hand(running: Site, folder: Path, out: Path, masked: bool) -> str:
    done = run(
        ["training", str(folder), "--base-model", "sd15", "--trigger", "imp", "--device", "cpu",
         "--resolution", "64", "--max-steps", "2", "--seed", "7", "--out", str(out),
         "--set", f"objective.masked={json.dumps(masked)}"],
        cwd=ROOT, env=running.surroundings(), folder=running.folder, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert is_told_of_masks(done.stderr) == (not masked and (folder / "masks").exists())
    return hashlib.sha256(out.read_bytes()).hexdigest()


def is_told_of_masks(content: str) -> bool:
    return "masks are not used: set objective.masked to use them" in " ".join(content.split())


def lora(view: View) -> str:
    assert view["status"] == "ready", view["failure"]
    assert {picture["state"] for picture in view["pictures"]} == {"good"}
    sha256: str = view["lora"]["sha256"]
    return sha256


def caption(folder: Path, name: str) -> str | None:
    text = (folder / name).with_suffix(".txt")
    return text.read_text().strip() if text.is_file() else None


def masks(folder: Path) -> list[Path | None]:
    return [next((folder / "masks").glob(f"{Path(name).stem}.*"), None) for name in NAMES]


def test_by_hand_a_mask_changes_the_file(running: Site, folder: Path, by_hand: dict[bool, str], tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "mascot", ignore=shutil.ignore_patterns("masks"))
    without = trained_by_hand(running, tmp_path / "mascot", tmp_path / "lora.safetensors", True)
    assert len({by_hand[True], by_hand[False], without}) == 3


@pytest.mark.parametrize("masked", [True, False])
def test_the_command_takes_the_masks_of_a_folder(
    running: Site, folder: Path, by_hand: dict[bool, str], masked: bool
) -> None:
    done = running.imprint(
        "submit", str(folder), "--owner", "ada", "--trigger", "imp", "--resolution", "64", "--max-steps", "2",
        "--seed", "7", "--set", f"objective.masked={json.dumps(masked)}", "--watch", "--json",
    )  # fmt: skip
    assert is_told_of_masks(done.stderr) == (not masked)
    view = json.loads(done.stdout.splitlines()[-1])
    assert lora(running.view(view["job_id"])) == by_hand[masked]


def test_the_command_stores_nothing_of_a_folder_whose_masks_do_not_fit(
    running: Site, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "stray")
    (tmp_path / "stray" / "masks" / "cat.png").write_bytes(b"")
    asked = ["submit", str(tmp_path / "stray"), "--trigger", "imp", "--set", "objective.masked=true"]
    for more in ([], ["--dry-run"]):
        done = running.imprint(*asked, *more, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert "masks/cat.png: no picture has the name of this mask" in " ".join(done.stderr.split())
    with running.services.database.reading() as session:
        assert session.exec(select(StoredPicture).where(StoredPicture.subject_id == "stray")).all() == []


def test_the_task_and_a_training_again(running: Site, folder: Path, by_hand: dict[bool, str]) -> None:
    images = [
        {"ref": (folder / name).as_uri(), "caption": caption(folder, name), "mask": mask.as_uri() if mask else None}
        for name, mask in zip(NAMES, masks(folder), strict=True)
    ]
    with pytest.raises(Exception, match=r"objective\.masked: the pictures have masks: set this to true"):
        running.send(owner_id="ada", images=images)
    view = running.wait(running.send(owner_id="ada", images=images, objective={"masked": True})["job_id"])
    assert lora(view) == by_hand[True]
    assert str(folder) not in json.dumps(view)
    again = json.loads(running.imprint("retry", view["job_id"], "--watch", "--json").stdout.splitlines()[-1])
    assert lora(running.view(again["job_id"])) == by_hand[True]


def test_over_http(running: Site, folder: Path, by_hand: dict[bool, str]) -> None:
    ada = Client(running, "ada")

    def stored(files: list[Path], query: str = "") -> list[str]:
        named = [("files", (file.name, file.read_bytes())) for file in files]
        return [one["id"] for one in ada.json("POST", f"/api/influencer/http/images{query}", files=named)["images"]]

    image_ids = stored([folder / name for name in NAMES])
    for image_id, name in zip(image_ids, NAMES, strict=True):
        ada.json("PATCH", f"/api/influencer/http/images/{image_id}", json={"caption": caption(folder, name)})
    beside = masks(folder)
    kept = iter(stored([mask for mask in beside if mask], "?masks=true"))
    body = {
        "baseModel": "sd15", "triggerWord": "imp", "resolution": 64, "maxSteps": 2, "seed": 7,
        "objective": {"masked": True}, "imageIds": image_ids,
        "maskIds": [next(kept) if mask else None for mask in beside],
    }  # fmt: skip
    job_id = ada.json("POST", "/api/influencer/http/lora/train", json=body)["id"]
    assert lora(running.wait(job_id)) == by_hand[True]


def test_a_message_of_the_queue(running: Site, folder: Path, by_hand: dict[bool, str]) -> None:
    """What the ingress makes of one, through the door that it uses; the queue itself is in tests/faults."""
    bare = folder.parent / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("*.txt"), dirs_exist_ok=True)
    wanted = trained_by_hand(running, bare, bare.with_suffix(".safetensors"), True)  # its messages have no captions
    settings = running.settings.model_copy(update={"ingress_owner": "ada", "ingress_paths": folder.as_uri()})
    message: dict[str, Any] = {
        "style_id": "ingress", "image_paths": NAMES, "trigger_word": "imp", "resolution": 64, "max_steps": 2, "seed": 7,
        "mask_paths": [os.path.relpath(mask, folder) if mask else None for mask in masks(folder)],
        "objective": {"masked": True},
    }  # fmt: skip
    arguments = parse_message(json.dumps(message).encode(), None, settings).arguments
    assert lora(running.wait(running.send(**arguments)["job_id"])) == wanted != by_hand[True]
