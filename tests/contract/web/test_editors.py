"""The editors of captions and pictures: every action is a form, and works without script."""

import io
import re
import zipfile
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from PIL import Image

from core.errors import NotFound
from jobs.subjects import captions, crops, picture_masks, subject_pictures, subject_settings
from tests.contract.web.conftest import Api
from tests.contract.web.test_results import cookie_of
from tests.site import MASCOT

REX = "/subjects/rex"


@dataclass
class Editor:
    """Ada's browser on her subject `rex` with three pictures."""

    api: Api
    headers: dict[str, str]
    images: list[str]

    def get(self, path: str) -> str:
        answer = self.api.call("GET", REX + path, headers=self.headers)
        assert answer.status_code == 200, answer.text
        return answer.text

    def post(self, path: str, **options: Any) -> httpx2.Response:
        answer = self.api.call("POST", REX + path, headers=self.headers, **options)
        assert answer.status_code == 303, answer.text
        return answer

    def captions(self) -> list[str | None]:
        return [one.caption for one in captions.list_captions(self.api.services, "ada", "rex")]


@pytest.fixture
def editor(api: Api) -> Editor:
    images = api.upload(api.token("ada"), 3)
    return Editor(api, cookie_of(api), images)


def test_going_on_saves(editor: Editor) -> None:
    first, second, third = editor.images
    assert "Picture 1 of 3" in editor.get("/captions")
    answer = editor.post(f"/captions/{first}", data={"text": "rex on grass", "then": "next"})
    assert answer.headers["location"] == f"{REX}/captions?picture={second}"
    assert "Picture 2 of 3" in editor.get(f"/captions?picture={second}")
    answer = editor.post(f"/captions/{second}", data={"text": "rex, asleep\r\nin a box", "then": "previous"})
    assert answer.headers["location"] == f"{REX}/captions?picture={first}"
    answer = editor.post(f"/captions/{third}", data={"text": "", "then": "next"})  # the last one
    assert answer.headers["location"] == f"{REX}/captions?picture={third}"
    assert editor.captions() == ["rex on grass", "rex, asleep\nin a box", None]
    assert "2 of 3 pictures have a caption" in editor.get("/captions")


def test_find_replace_put_in_front_and_undo(editor: Editor) -> None:
    for picture, text in zip(editor.images, ("a dog on grass", "a dog asleep", "nothing"), strict=True):
        editor.post(f"/captions/{picture}", data={"text": text})
    found = editor.get("/captions?find=a+dog")
    assert "Found in 2 captions" in found
    answer = editor.post("/captions/all/replace", data={"find": "a dog", "replacement": "rex"})
    assert "changed=2" in answer.headers["location"]
    assert "2 captions changed" in editor.get("/captions?changed=2")
    editor.post("/captions/all/prepend", data={"text": "sks "})
    assert editor.captions() == ["sks rex on grass", "sks rex asleep", "sks nothing"]
    editor.post("/captions/all/undo")
    editor.post("/captions/all/undo")
    assert editor.captions() == ["a dog on grass", "a dog asleep", "nothing"]


def test_captions_come_from_text_files_and_from_a_zip_of_them(editor: Editor) -> None:
    names = [one.name for one in captions.list_captions(editor.api.services, "ada", "rex")]
    stems = [str(name).rsplit(".", 1)[0] for name in names]
    editor.post("/captions/all/import", files=[("files", (f"{stems[0]}.txt", b"one"))])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(f"captions/{stems[1]}.txt", "two")
        archive.writestr(f"captions/{stems[2]}.txt", "three")
        archive.writestr("__MACOSX/._x.txt", "hidden")
    editor.post("/captions/all/import", files=[("files", ("captions.zip", packed.getvalue()))])
    assert editor.captions() == ["one", "two", "three"]


def test_the_large_picture_is_whole(editor: Editor) -> None:
    wide = io.BytesIO()
    Image.effect_noise((2000, 500), 80).convert("RGB").save(wide, "PNG")
    services = editor.api.services
    picture_id = subject_pictures.add(services, "ada", "rex", wide.getvalue(), name="wide.png")
    answer = editor.api.call("GET", f"{REX}/images/{picture_id}/large", headers=editor.headers)
    with Image.open(io.BytesIO(answer.content)) as shown:
        assert (shown.format, shown.size) == ("JPEG", (1280, 320))
    small = editor.api.call("GET", f"{REX}/images/{editor.images[0]}/large", headers=editor.headers)
    with Image.open(io.BytesIO(small.content)) as shown:
        seen = subject_pictures.get(services, "ada", "rex", editor.images[0])
        assert shown.size == (seen.width, seen.height)  # never enlarged
    with pytest.raises(NotFound):
        subject_pictures.large(services, "bob", "rex", picture_id)


def test_the_part_that_is_trained_is_chosen_and_reset(editor: Editor) -> None:
    picture_id, services = editor.images[0], editor.api.services
    text = editor.get(f"/images/{picture_id}/edit")
    before = {
        name: int(value) for name, value in re.findall(r'name="(\w+)" inputmode="numeric"[^>]*value="(\d+)"', text)
    }
    assert set(before) == {"left", "top", "width", "height"}
    box = {"left": "10", "top": "20", "width": "300", "height": "300"}
    editor.post(f"/images/{picture_id}/crop", data=box)
    cropped = subject_pictures.get(services, "ada", "rex", picture_id)
    assert cropped.view is not None
    assert (round(cropped.view.left), round(cropped.view.top)) == (10, 20)
    assert "cropped by you" in editor.get(f"/images/{picture_id}/edit")
    seen = editor.api.call("GET", f"{REX}/images/{picture_id}/seen", headers=editor.headers)
    assert seen.content == crops.show_crop(services, "ada", "rex", picture_id, subject_pictures.preview_spec(None))
    editor.post(f"/images/{picture_id}/uncrop")
    assert not subject_pictures.get(services, "ada", "rex", picture_id).is_cropped
    outside = editor.api.call("POST", f"{REX}/images/{picture_id}/crop", headers=editor.headers,
                              data=box | {"left": "99999"})  # fmt: skip
    assert outside.status_code == 422


def mask(editor: Editor, picture_id: str, size: tuple[int, int], lightness: int = 255) -> httpx2.Response:
    """Upload a mask of one lightness through the form."""
    out = io.BytesIO()
    Image.new("L", size, lightness).save(out, "PNG")
    path = f"{REX}/images/{picture_id}/mask"
    return editor.api.call("POST", path, headers=editor.headers, files=[("files", ("any.png", out.getvalue()))])


def test_a_mask_belongs_to_its_picture_until_it_is_removed(editor: Editor) -> None:
    services, first = editor.api.services, editor.images[0]
    out = io.BytesIO()
    Image.open(sorted(MASCOT.glob("*.png"))[0]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(out, "PNG")
    second = subject_pictures.add(services, "ada", "rex", out.getvalue())  # as large, and without a name
    one = subject_pictures.get(services, "ada", "rex", first)
    half = (one.width // 2, one.height // 2)
    assert picture_masks.find(services, "ada", "rex", first) is None
    for picture_id in (first, second):  # the same bytes for two pictures
        assert mask(editor, picture_id, half).status_code == 303
    pictures = [first, second, editor.images[1]]
    found = [picture_masks.find(services, "ada", "rex", picture_id) for picture_id in pictures]
    assert found[0] != found[1]
    assert found[2] is None
    assert subject_settings.is_masked(subject_settings.get(services, "ada", "rex").recipe or {})
    given = subject_settings.training_arguments(services, "ada", "rex", {"images": pictures})
    assert [one["mask"] if isinstance(one, dict) else None for one in given["images"]] == found

    mask(editor, first, half, 90)
    assert len(subject_pictures.list_masks(services, "ada", "rex")) == 2  # it takes the place of the one before
    mask(editor, first, half)  # the first one again
    shown = editor.api.call("GET", f"{REX}/images/{first}/mask", headers=editor.headers)
    with Image.open(io.BytesIO(shown.content)) as picture:
        assert picture.convert("L").getextrema() == (255, 255)
    assert mask(editor, first, (90, 400)).status_code == 422  # of another shape: the one before stays
    assert picture_masks.find(services, "ada", "rex", first) == found[0]

    for picture_id in (first, second):
        editor.post(f"/images/{picture_id}/unmask")
        assert picture_masks.find(services, "ada", "rex", picture_id) is None
    assert subject_settings.get(services, "ada", "rex").recipe is None
