"""A folder as phones and people leave it, through every door: each file is in one report, by name and once."""

import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from cli.main import imprint
from core.settings import Settings
from jobs import service
from jobs.owners import accounts
from jobs.services import Services
from jobs.stages import preprocessing
from tests.contract.web.conftest import Api, make_api
from tests.servers.s3 import s3_server
from tests.unit.drawings import drawing, encoded
from training.data.folders.picture_folder import read_folder

GOOD = {
    "IMG_0001.JPG": ("JPEG", {"quality": 90}), "IMG_0002.HEIC": ("HEIF", {}), "IMG_0003.png": ("PNG", {}),
    "saved.jfif": ("JPEG", {}), "from web.webp": ("WEBP", {}), "new.avif": ("AVIF", {}), "scan.tif": ("TIFF", {}),
    "old.bmp": ("BMP", {}), "funny.gif": ("GIF", {}), "film.jp2": ("JPEG2000", {}),
}  # fmt: skip
BAD = {"tiny.jpg": b"", "broken.jpg": b"\xff\xd8\xff\xe0 no picture", "empty.png": b"", "page.jpg": b"<!doctype html>"}
OTHER = {
    "raw.DNG": b"II*\0", "new.jxl": b"\xff\x0a", "clip.mov": b"\0\0\0\x14ftypqt  ", "notes.docx": b"PK\3\4",
    "lost.txt": b"sks", "Zoe\u0301.txt": b"sks",
}  # fmt: skip
HIDDEN = {".DS_Store": b"x", "._IMG_0001.JPG": b"x", "Thumbs.db": b"x"}
CAPTIONS = {"IMG_0001.TXT": "sks on grass", "IMG_0002.caption": "sks at home", "IMG_0003.png.txt": "sks in rain"}
PICTURES = {*GOOD, *BAD}
ALL = {*PICTURES, *OTHER, *HIDDEN, *CAPTIONS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("phone") / "rex"
    made.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright
    for number, (name, (format_, options)) in enumerate(GOOD.items()):
        more = {"exif": exif} if name == "IMG_0001.JPG" else {}
        (made / name).write_bytes(encoded(drawing(number, 512), format_, **options, **more))
    for name, data in (BAD | OTHER | HIDDEN).items():
        (made / name).write_bytes(data)
    (made / "tiny.jpg").write_bytes(encoded(drawing(90, 100), "JPEG"))
    for name, text in CAPTIONS.items():
        (made / name).write_text(text)
    return made


@pytest.fixture(scope="module")
def archive(folder: Path) -> Path:
    packed = folder.with_suffix(".zip")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
        for path in sorted(folder.iterdir()):
            if path.name != "notes.docx":  # it begins as an archive does; by its name it is none
                made.write(path, f"rex/{path.name}")
        made.write(folder / "notes.docx", "rex/notes.docx")
    return packed


def names_once(names: list[str], wanted: set[str]) -> None:
    assert Counter(names) == Counter(wanted)


@pytest.mark.parametrize("packed", [False, True])
def test_the_command_names_every_file_once(folder: Path, archive: Path, packed: bool) -> None:
    done = CliRunner().invoke(imprint, ["check", str(archive if packed else folder), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    pictures = {one["name"]: one for one in told["pictures"]}
    names = [*pictures, *(one["caption_file"] for one in told["pictures"] if one["caption_file"])]
    names_once([*names, *(name for other in told["others"] for name in other["names"])], ALL)
    assert {name for name, one in pictures.items() if one["verdict"] == "good"} == set(GOOD)
    assert pictures["tiny.jpg"]["faults"] == ["too_small"]
    assert "web page" in pictures["page.jpg"]["notes"][0]
    assert [pictures[name]["caption"] for name in ("IMG_0001.JPG", "IMG_0002.HEIC", "IMG_0003.png")] == [
        "sks on grass", "sks at home", "sks in rain",
    ]  # fmt: skip
    said = CliRunner().invoke(imprint, ["check", str(folder)]).stdout
    assert all(name in said for name in ALL)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    yield from make_api(Settings(_env_file=None, home=tmp_path_factory.mktemp("home"), web_rate_per_s=1e6))


def upload(api: Api, subject: str, paths: list[Path]) -> dict[str, Any]:
    files = [("files", (path.name, path.read_bytes())) for path in paths]
    answer = api.call("POST", f"/api/influencer/{subject}/images", api.token("ada"), files=files)
    assert answer.status_code == 201, answer.text
    told: dict[str, Any] = answer.json()
    return told


def test_an_upload_names_every_file_once(api: Api, folder: Path) -> None:
    pictures = sorted(path for path in folder.iterdir() if path.name in PICTURES)
    others = sorted(path for path in folder.iterdir() if path.name not in PICTURES)
    told = [upload(api, "forms", part) for part in (pictures, [*others, pictures[0]])]
    stored = {image["name"]: image for part in told for image in part["images"]}
    lines = [line for part in told for line in (*(one["detail"] for one in part["refused"]), *part["notes"])]
    assert set(stored) == {*GOOD, "tiny.jpg"}
    assert [image["faults"][0]["code"] for image in stored.values() if image["verdict"] == "bad"] == ["too_small"]
    captions = {"IMG_0001.JPG": "sks on grass", "IMG_0002.HEIC": "sks at home", "IMG_0003.png": "sks in rain"}
    found = api.call("GET", "/api/influencer/forms/captions", api.token("ada")).json()["captions"]
    assert {one["name"]: one["caption"] for one in found if one["caption"]} == captions
    for name in ALL - set(stored) - set(CAPTIONS):
        assert sum(name in re.split(r"[ ,();:]+", line) for line in lines) == 1, (name, lines)


def test_an_uploaded_archive_names_every_file_once(api: Api, archive: Path) -> None:
    told = upload(api, "zip", [archive])
    stored = {image["name"]: image for image in told["images"]}
    lines = [*(one["detail"] for one in told["refused"]), *told["notes"]]
    assert set(stored) == {*GOOD, "tiny.jpg"}
    assert stored["IMG_0002.HEIC"]["caption"] == "sks at home"
    for name in ALL - set(stored) - set(CAPTIONS):
        assert sum(name in re.split(r"[ ,();:]+", line) for line in lines) == 1, (name, lines)


def test_pictures_from_s3_are_named_once(folder: Path, tmp_path: Path) -> None:
    with s3_server() as server:
        bucket = server.bucket()
        found = read_folder(folder, masked=False)
        for picture in found.pictures:
            server.client.upload_file(str(picture.path), bucket, f"phone/{picture.path.name}")
        services = Services(
            Settings(
                _env_file=None, home=tmp_path, store_url=f"s3://{bucket}/imprint", s3_endpoint_url=server.endpoint_url,
                s3_access_key_id=server.access_key_id, s3_secret_access_key=server.secret_access_key,
            )
        )  # fmt: skip
        accounts.grant(services, "ada", 1000, key="welcome")
        images = [{"ref": f"s3://{bucket}/phone/{one.path.name}", "caption": one.caption} for one in found.pictures]
        job_id = service.submit(
            services,
            {"owner_id": "ada", "subject_id": "rex", "base_model": "sd15", "trigger_word": "sks", "images": images},
        ).job_id
        for position in range(len(images)):
            preprocessing.preprocess(services, job_id, position)
        view = service.get(services, job_id)
        names_once([str(picture.name) for picture in view.pictures], PICTURES)
        assert {picture.name for picture in view.pictures if picture.state == "good"} == set(GOOD)
        services.database.close()
        services.decoder.close()
