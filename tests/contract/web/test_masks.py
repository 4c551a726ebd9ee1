"""Masks over HTTP: stored beside the pictures, and named by a training."""

import io
from typing import Any

import pytest
from PIL import Image
from sqlmodel import select

from jobs.subjects import subject_pictures
from storage.tables.jobs import JobPicture
from tests.contract.web.conftest import RECIPE, REX, Api, problem
from tests.hostile.test_archives import of_files
from tests.unit.drawings import drawing, encoded

MASKED = {"objective": {"masked": True}}


@pytest.fixture
def ada(api: Api) -> str:
    return api.token("ada")


def png(lightness: int, side: int = 64) -> bytes:
    out = io.BytesIO()
    Image.new("L", (side, side), lightness).save(out, "PNG")
    return out.getvalue()


def upload(api: Api, secret: str, *files: bytes) -> dict[str, Any]:
    named = [("files", ("m.png", data)) for data in files]
    answer = api.call("POST", f"{REX}/images?masks=true", secret, files=named)
    assert answer.status_code == 201, answer.text
    content: dict[str, Any] = answer.json()
    return content


def test_masks_are_stored_beside_the_pictures(api: Api, ada: str) -> None:
    images = api.upload(ada, 5)
    content = upload(api, ada, png(255), png(0), b"<svg>")
    masks = [image["id"] for image in content["images"]]
    assert [(image["verdict"], image["faults"]) for image in content["images"]] == [
        ("good", [])
    ] * 2  # as flat as they are
    assert [(one["index"], one["code"]) for one in content["refused"]] == [(2, "image_invalid")]
    assert [image["id"] for image in upload(api, ada, png(255))["images"]] == masks[:1]

    listed = api.call("GET", f"{REX}/lora/available-images", ada).json()
    assert [image["id"] for image in listed["images"]] == images
    with api.services.database.reading() as session:
        assert (
            subject_pictures.usable_ids(session, "ada", "rex") == images
        )  # no training that starts by itself takes a mask
    assert api.call("GET", content["images"][0]["previewUrl"], ada).status_code == 200
    one = f"{REX}/images/{masks[0]}"
    problem(api.call("PATCH", one, ada, json={"caption": "a mask"}), 404, "not_found")
    assert api.call("DELETE", one, ada).status_code == 204
    content = problem(api.train(ada, images, maskIds=[masks[0], *[None] * 4], **MASKED), 422, "spec_invalid")
    assert set(content["faults"]) == {"maskIds.0"}


def test_a_training_names_a_mask_for_each_picture_or_none(api: Api, ada: str) -> None:
    images = api.upload(ada, 5)
    [mask] = [image["id"] for image in upload(api, ada, png(128))["images"]]
    body = {**RECIPE, **MASKED, "imageIds": images, "maskIds": [None, mask, None, mask, None]}
    quote = api.call("POST", f"{REX}/lora/train?dryRun=true", ada, json=body)
    assert quote.status_code == 200, quote.text
    started = api.call("POST", f"{REX}/lora/train", ada, json=body)
    assert started.status_code == 202, started.text
    again = f"/api/trainings/{started.json()['id']}"
    assert api.call("POST", f"{again}/cancel", ada).status_code == 200
    assert api.call("POST", f"{again}/retry", ada).status_code == 202
    with api.services.database.reading() as session:
        rows = session.exec(select(JobPicture)).all()
    kept = {(row.job_id, row.position): row.mask for row in rows}
    assert len(kept) == 10
    assert {position for (_, position), named in kept.items() if named == mask} == {1, 3}


def test_faults_are_named_by_the_place_of_the_mask(api: Api, ada: str) -> None:
    images = api.upload(ada, 5)
    [mask] = [image["id"] for image in upload(api, ada, png(128))["images"]]

    def faults(masks: Any, **more: Any) -> dict[str, str]:
        content = problem(api.train(ada, images, maskIds=masks, **{**MASKED, **more}), 422, "spec_invalid")
        found: dict[str, str] = content["faults"]
        return found

    nothing: list[Any] = [None] * 5
    assert set(faults(["https://hush/m.png", 7, {}, images[0], mask])) == {"maskIds.0", "maskIds.1", "maskIds.2"}
    assert set(faults(["pic_unknown", *nothing[1:]])) == {"maskIds.0"}
    assert set(faults([*nothing, None])) == set(faults(mask)) == set(faults({})) == {"maskIds"}
    assert set(faults([mask, *nothing[1:]], objective={})) == {"objective.masked"}
    bob = api.token("bob")
    theirs = [image["id"] for image in upload(api, bob, png(9))["images"]]
    assert set(faults([*theirs, *nothing[1:]])) == {"maskIds.0"}


def test_masks_in_an_archive_belong_to_the_pictures_of_their_names(api: Api, ada: str) -> None:
    files = {f"rex{number}.png": encoded(drawing(number, 512)) for number in range(5)}
    files |= {"masks/REX1.png": png(255), "masks/rex3.png": png(0), "masks/other.png": png(9)}
    answer = api.call("POST", f"{REX}/images", ada, files=[("files", ("rex.zip", of_files(files, ".zip")))])
    assert answer.status_code == 201, answer.text
    content = answer.json()
    images = [image["id"] for image in content["images"]]
    assert len(images) == 5
    assert content["notes"] == [
        "rex.zip: no picture has the name of these masks: masks/other.png",
        "2 masks were stored; a training with objective.masked uses each for the picture of its name",
    ]
    assert masked_pictures(api, api.train(ada, images, **MASKED).json()["id"]) == [1, 3]
    # With masks of its own, and without the loss for them, a training is as before.
    plain = api.train(ada, images, maskIds=[None] * 5, seed=8, **MASKED)
    assert masked_pictures(api, plain.json()["id"]) == []
    assert masked_pictures(api, api.train(ada, images, seed=9).json()["id"]) == []


def masked_pictures(api: Api, job_id: str) -> list[int]:
    with api.services.database.reading() as session:
        rows = session.exec(select(JobPicture).where(JobPicture.job_id == job_id)).all()
    return sorted(row.position for row in rows if row.mask)
