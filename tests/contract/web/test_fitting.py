"""Pictures are judged for the base model and resolution that are asked for, before anything is held; crops."""

import io
from typing import Any

from PIL import Image
from sqlmodel import select

from jobs.owners import accounts
from storage.tables.jobs import Job
from tests.contract.web.conftest import RECIPE, REX, Api, problem
from tests.contract.web.test_uploads import send
from tests.unit.drawings import drawing, encoded


def store(api: Api, secret: str, *sides: int) -> list[str]:
    files = [(f"rex{number}.png", encoded(drawing(number, side))) for number, side in enumerate(sides)]
    return [image["id"] for image in send(api, secret, *files)["images"]]


def listed(api: Api, secret: str, **asked: Any) -> list[dict[str, Any]]:
    answer = api.call("GET", f"{REX}/lora/available-images", secret, params=asked)
    assert answer.status_code == 200, answer.text
    told: list[dict[str, Any]] = answer.json()["images"]
    return told


def test_the_verdict_belongs_to_a_base_model_and_a_resolution(api: Api) -> None:
    ada = api.token("ada")
    store(api, ada, 600, 800, 1100)
    assert [image["verdict"] for image in listed(api, ada)] == ["good"] * 3
    sdxl = listed(api, ada, baseModel="sdxl")
    assert [(image["verdict"], len(image["warnings"])) for image in sdxl] == [("bad", 0), ("good", 1), ("good", 0)]
    assert sdxl[0]["faults"][0]["code"] == "too_small"
    assert sdxl[0]["name"] == "rex0.png"
    assert [image["verdict"] for image in listed(api, ada, baseModel="sdxl", resolution=768)] == ["good"] * 3
    api.call("PATCH", f"{REX}/lora/settings", ada, json={"baseModel": "sd15", "recipe": {"resolution": 960}})
    assert [image["verdict"] for image in listed(api, ada)] == ["bad", "good", "good"]
    problem(api.call("GET", f"{REX}/lora/available-images?resolution=100", ada), 422, "spec_invalid")


def test_too_small_pictures_are_named_before_anything_is_held(api: Api) -> None:
    ada = api.token("ada")
    ids = store(api, ada, 600, 600, 800, 1100, 1100, 1100)
    wanted = {**RECIPE, "baseModel": "sdxl", "imageIds": ids, "maxSteps": 10}
    del wanted["resolution"]
    told = problem(api.call("POST", f"{REX}/lora/train", ada, json=wanted), 422, "spec_invalid")
    assert set(told["faults"]) == {"imageIds.0", "imageIds.1"}
    assert told["faults"]["imageIds.0"].startswith("picture 1 (rex0.png): too small: 600 by 600 pixels")
    assert accounts.balance(api.services, "ada").available == 1000
    with api.services.database.reading() as session:
        assert session.exec(select(Job)).all() == []

    more = [*ids, *store(api, ada, *[1101 + number for number in range(1)])]
    answer = api.call("POST", f"{REX}/lora/train", ada, json={**wanted, "imageIds": more})
    assert answer.status_code == 202, answer.text
    notes = answer.json()["notes"]
    assert [note.partition(":")[0] for note in notes] == [
        "picture 1 (rex0.png) will be left out", "picture 2 (rex1.png) will be left out", "picture 3 (rex2.png)",
    ]  # fmt: skip


def test_a_word_that_means_something_else_is_told(api: Api) -> None:
    ada = api.token("ada")
    ids = store(api, ada, *[600] * 5)
    answer = api.call("POST", f"{REX}/lora/train", ada, json={**RECIPE, "imageIds": ids, "triggerWord": "Dog"})
    [note] = answer.json()["notes"]
    assert note.startswith('text encoders know "Dog" already as something else')


def shown(api: Api, secret: str, image: str, **asked: Any) -> Image.Image:
    answer = api.call("GET", f"{REX}/images/{image}/crop", secret, params=asked)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg"), answer.text
    return Image.open(io.BytesIO(answer.content)).convert("RGB")


def test_the_owner_chooses_what_is_trained(api: Api) -> None:
    ada, bob = api.token("ada"), api.token("bob")
    picture = Image.new("RGB", (1600, 1200), "red")
    picture.paste(drawing(3, 800), (800, 0))
    [image] = [one["id"] for one in send(api, ada, ("rex.png", encoded(picture)))["images"]]
    [one] = listed(api, ada)
    assert one["seen"] == {
        "left": 200.0, "top": 0.0, "width": 1200.0, "height": 1200.0, "trainedWidth": 512, "trainedHeight": 512
    }  # fmt: skip
    assert not one["isCropped"]
    assert shown(api, ada, image).getpixel((20, 200))[0] > 200  # type: ignore[index]
    [wide] = listed(api, ada, aspectBuckets=True)
    assert (wide["seen"]["trainedWidth"], wide["seen"]["trainedHeight"]) == (576, 448)
    assert shown(api, ada, image, aspectBuckets=True).size == (256, 199)

    box = {"left": 800, "top": 0, "width": 800, "height": 800}
    told = api.call("PUT", f"{REX}/images/{image}/crop", ada, json=box).json()
    assert (told["isCropped"], told["seen"]["left"], told["seen"]["width"]) == (True, 800.0, 800.0)
    small = drawing(3, 800).resize((256, 256))
    for seen in (shown(api, ada, image), Image.open(io.BytesIO(api.call("GET", told["previewUrl"], ada).content))):
        assert all(
            abs(have - want) < 40
            for place in ((10, 10), (128, 128), (200, 60))
            for have, want in zip(seen.convert("RGB").getpixel(place), small.getpixel(place), strict=True)  # type: ignore[arg-type]
        )
    problem(api.call("PUT", f"{REX}/images/{image}/crop", ada, json=box | {"left": 801}), 422, "spec_invalid")
    problem(api.call("PUT", f"{REX}/images/{image}/crop", ada, json=box | {"width": 1}), 422, "spec_invalid")
    problem(api.call("PUT", f"{REX}/images/{image}/crop", bob, json=box), 404, "not_found")
    assert not api.call("DELETE", f"{REX}/images/{image}/crop", ada).json()["isCropped"]
    assert listed(api, ada)[0]["seen"] == one["seen"]
