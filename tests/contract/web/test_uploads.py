"""Uploads of archives and of captions: what is used, and a line for everything else."""

import html
import io
import re
import zipfile
from typing import Any

import pytest
from httpx2 import Response

from jobs.subjects import subject_pictures
from tests.contract.web.conftest import REX, Api, problem
from tests.contract.web.test_results import cookie_of
from tests.hostile.test_archives import of_files
from tests.unit.drawings import drawing, encoded


def png(number: int) -> bytes:
    return encoded(drawing(number, 512))


def send(api: Api, secret: str, *files: tuple[str, bytes], status: int = 201) -> dict[str, Any]:
    answer = api.call("POST", f"{REX}/images", secret, files=[("files", file) for file in files])
    assert answer.status_code == status, answer.text
    content: dict[str, Any] = answer.json()
    return content


def listed(api: Api, secret: str) -> dict[str, Any]:
    content: dict[str, Any] = api.call("GET", f"{REX}/lora/available-images", secret).json()
    return content


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar.xz"])
def test_an_archive_is_stored_picture_by_picture(api: Api, suffix: str) -> None:
    ada = api.token("ada")
    files = {f"dog/rex{number}.png": png(number) for number in range(3)} | {
        "dog/rex1.txt": b"sks on grass", "dog/broken.jpg": b"x", "dog/clip.mov": b"x", "dog/.DS_Store": b"x",
        "dog/other.txt": b"x", "__MACOSX/dog/._rex1.png": b"x",
    }  # fmt: skip
    content = send(api, ada, (f"dog{suffix}", of_files(files, suffix)), ("rex9.png", png(9)))
    assert [(image["verdict"], image["caption"]) for image in content["images"]] == [
        ("good", None), ("good", "sks on grass"), ("good", None), ("good", None),
    ]  # fmt: skip
    [refused] = content["refused"]
    assert refused["index"] == 0
    assert refused["detail"].startswith(f"dog{suffix}, picture 1 (broken.jpg): the file is not a picture")
    assert content["notes"] == [
        f"dog{suffix}: no picture has the name of these captions: other.txt",
        f"dog{suffix}: skipped 1 hidden file, such as a computer writes beside pictures: .DS_Store",
        f"dog{suffix}: not pictures, and not read: clip.mov",
    ]
    found = listed(api, ada)
    assert len(found["images"]) == 4
    assert found["notes"] == content["notes"]
    assert api.call("DELETE", f"{REX}/images/notes", ada).status_code == 204
    assert listed(api, ada)["notes"] == []
    assert send(api, ada, (f"dog{suffix}", of_files(files, suffix)))["images"] == content["images"][:3]


def test_captions_are_read_beside_pictures_and_for_earlier_ones(api: Api) -> None:
    ada = api.token("ada")
    first = send(api, ada, ("rex0.png", png(0)), ("rex0.txt", b"sks on grass"), ("notes.md", b"# x"), status=201)
    assert first["images"][0]["caption"] == "sks on grass"
    assert [one["detail"].partition(":")[0] for one in first["refused"]] == ["picture 3 (notes.md)"]
    later = send(api, ada, ("metadata.jsonl", b'{"file_name": "rex0.png", "text": "sks at home"}'))
    assert later == {"images": [], "refused": [], "notes": []}
    assert listed(api, ada)["images"][0]["caption"] == "sks at home"
    lost = send(api, ada, ("rex7.txt", b"sks"), ("._rex0.png", b"x"))
    assert lost["notes"] == [
        "skipped the hidden file ._rex0.png, such as a computer writes beside pictures",
        "no picture has the name of these captions: rex7.txt",
    ]
    bad = send(api, ada, ("rex0.txt", b"\x80\x81\x90"))
    assert bad["notes"] == [
        "captions were not used: rex0.txt: the caption is neither UTF-8, UTF-16 nor Windows-1252 text"
    ]


def test_an_archive_that_is_not_accepted_is_named(api: Api) -> None:
    ada = api.token("ada")
    for files, fault in (
        ({"../x.png": png(0)}, "dog.zip: ../x.png would be unpacked outside its folder"),
        ({"a.png": png(0), "more.zip": b"x"}, "dog.zip: more.zip is an archive in the archive; unpack it first"),
        ({"a.pdf": b"x"}, "dog.zip: there are no pictures in it"),
    ):
        answer = api.call("POST", f"{REX}/images", ada, files=[("files", ("dog.zip", of_files(files, ".zip")))])
        assert problem(answer, 422, "image_invalid")["faults"]["0"] == fault
    rar = api.call("POST", f"{REX}/images", ada, files=[("files", ("dog.rar", b"Rar!\x1a\x07\0"))])
    assert "a RAR archive" in problem(rar, 422, "image_invalid")["faults"]["0"]
    hidden = api.call("POST", f"{REX}/images", ada, files=[("files", (".DS_Store", b"x"))])
    assert "hidden" in problem(hidden, 422, "image_invalid")["faults"]["files"]


def test_a_bomb_takes_no_more_space_than_an_upload_may(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = api.token("ada")
    monkeypatch.setattr(api.client.app.state.uploads, "max_unpacked_bytes", 1_000_000)  # type: ignore[attr-defined]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(100):
            archive.writestr(f"{number}.jpg", bytes(100_000))
    answer = api.call("POST", f"{REX}/images", ada, files=[("files", ("bomb.zip", out.getvalue()))])
    assert "more than 1000000 bytes" in problem(answer, 422, "image_invalid")["faults"]["0"]


def test_pictures_beyond_the_limit_are_named(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = api.token("ada")
    monkeypatch.setattr(subject_pictures, "MAX_STORED_PICTURES", 2)
    content = send(api, ada, ("dog.zip", of_files({f"{number}.png": png(number) for number in range(4)}, ".zip")))
    assert len(content["images"]) == 2
    assert [one["detail"].partition(":")[0] for one in content["refused"]] == [
        "dog.zip, picture 3 (2.png)", "dog.zip, picture 4 (3.png)",
    ]  # fmt: skip


def test_the_page_names_a_refused_file_once_and_says_what_to_do(api: Api) -> None:
    """The script shows the name of its file; without script, the page does. Both in the language of the page."""
    page = cookie_of(api)
    cut, mixed = png(0)[:9000], of_files({"b.jpg": b"x", "a.png": png(1), "clip.mov": b"x"}, ".zip")

    def send_form(*files: tuple[str, bytes], **headers: str) -> Response:
        parts = [("files", file) for file in files]
        return api.call("POST", "/subjects/rex/images", headers={**page, **headers}, files=parts)

    script = {"accept": "application/json"}
    for file, language, fault in (
        (("cut.png", cut), "en", "the picture is truncated: its end is missing; save or download it again"),
        (("cut.png", cut), "de", "Das Bild ist abgeschnitten: Das Ende fehlt; speichern Sie es neu"),
        (("notes.png", b"x"), "de", "Die Datei ist kein Bild; angenommen werden JPEG, "),
        (("cut.zip", mixed[:-90]), "en", "the archive is damaged or incomplete; make or download it again"),
        (("bad.zip", of_files({"b.jpg": b"x"}, ".zip")), "en", "picture 1 (b.jpg): the file is not a picture; "),
    ):
        answer = send_form(file, **script, **{"accept-language": language})
        assert problem(answer, 422, "image_invalid")["faults"]["0"].startswith(fault), answer.text
    [refused] = send_form(("dog.zip", mixed), **script).json()["refused"]
    assert refused["detail"].startswith("picture 2 (b.jpg): the file is not a picture; ")

    shown = html.unescape(send_form(("cut.png", cut), ("notes.png", b"x"), accept="text/html").text)
    assert re.findall(r"<li>(.*?)</li>", shown)[0].startswith("cut.png: the picture is truncated: ")
    assert shown.count("cut.png") == shown.count("notes.png") == 1
    answer = send_form(("good.png", png(2)), ("notes.png", b"x"), accept="text/html")
    assert answer.headers["location"].endswith("notice=some")
    assert any(
        note.startswith("notes.png: the file is not a picture; ") for note in listed(api, api.token("ada"))["notes"]
    )
