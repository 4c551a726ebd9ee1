"""The shop screens and captions pictures: tasks of its own, on its own worker, over a real broker."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.stages import intake
from tests.samples import sample
from tests.servers.shop import Shop
from tests.site import RECIPE, drawing, site, until

pytestmark = pytest.mark.filterwarnings("ignore:Task name 'shop")


@pytest.fixture(scope="module", params=sample(["redis", "rabbitmq"], 1, "brokers of the shop"))
def shop(request: pytest.FixtureRequest, base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    settings = {"IMPRINT_SCREEN_TASK": "shop.screen", "IMPRINT_SCREEN_QUEUE": "shop"}
    settings |= {"IMPRINT_CAPTION_TASK": "shop.caption", "IMPRINT_CAPTION_QUEUE": "shop"}
    with site(tmp_path_factory.mktemp("shop"), base_model, broker=request.param, **settings) as running:
        made = Shop(running)
        made.start()
        yield made
        made.module.app.close()


def train(shop: Shop, kind: str, folder: Path, first: int, **changed: Any) -> tuple[str, str]:
    """An owner of a kind, and its training on five pictures with numbers from `first` on."""
    owner = f"{kind}-{secrets.token_hex(4)}"
    shop.site.grant(owner)
    files = [drawing(folder / f"{number}.png", number).read_bytes() for number in range(first, first + 5)]
    images = [intake.store_picture(shop.site.services, owner, "mascot", file) for file in files]
    request = {"owner_id": owner, "subject_id": "mascot", "images": images, **RECIPE, **changed}
    view = shop.module.train_lora(**request).apply_async().get(timeout=60)
    return owner, view["job_id"]


@pytest.mark.drawn
def test_pictures_are_screened_once_and_accepted_or_refused(shop: Shop, tmp_path: Path) -> None:
    running = shop.site
    owner, job_id = train(shop, "good", tmp_path, 0)
    assert running.wait(job_id)["status"] == "ready"
    seen = [one["sha256"] for one in shop.written(owner, "screen")]
    assert len(seen) == len(set(seen)) == 5
    # The same pictures of another owner, who would be refused: they have their verdicts already.
    other, job_id = train(shop, "blocked", tmp_path, 0)
    assert running.wait(job_id)["status"] == "ready"
    assert shop.written(other, "screen") == []
    # New pictures of an owner who is blocked: none is left, and nothing is charged.
    blocked, job_id = train(shop, "blocked", tmp_path, 10)
    view = running.wait(job_id)
    assert (view["failure"]["code"], view["credits"]["charged"]) == ("too_few_images", 0)
    assert {tuple(picture["faults"]) for picture in view["pictures"]} == {("refused",)}
    assert len(shop.written(blocked, "screen")) == 5


def test_held_pictures_are_decided_with_commands(shop: Shop, tmp_path: Path) -> None:
    running = shop.site
    owner, job_id = train(shop, "doubtful", tmp_path, 20)
    until(lambda: len(json.loads(running.imprint("screening", "--json").stdout)) == 5, 90, "five are held")
    assert running.view(job_id)["credits"]["charged"] == 0
    held = json.loads(running.imprint("screening", "--json").stdout)
    assert {(one["owner_id"], *one["job_ids"]) for one in held} == {(owner, job_id)}
    for one in held:
        running.imprint("screening", "accept", one["sha256"])
    assert running.wait(job_id)["status"] == "ready"
    assert "no picture" in running.imprint("screening").stdout


def test_the_shop_writes_captions_which_its_owner_accepts(shop: Shop, tmp_path: Path) -> None:
    running = shop.site
    owner, job_id = train(shop, "good", tmp_path, 30, captions="auto", class_word="mascot", review=True)
    until(lambda: running.view(job_id)["stage"] == "review", 90, "the captions are written")
    assert running.view(job_id)["credits"]["charged"] == 0
    asked = shop.written(owner, "caption")
    assert len(asked) == 5
    assert "Leave out how the thing itself looks" in asked[0]["instruction"]
    found = json.loads(running.imprint("captions", "review", job_id, "--json").stdout)
    assert {one["caption"].partition(" ")[2] for one in found["captions"]} == {"mascot on a wall"}
    running.imprint("captions", "replace", "mascot", "a wall", "grass", "--owner", owner)
    running.imprint("captions", "accept", job_id)
    assert running.wait(job_id)["status"] == "ready"
