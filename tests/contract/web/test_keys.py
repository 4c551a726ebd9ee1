"""One idempotency key starts one training and holds its price once: at every route, task and command, twice and by
many at once. A new route, task or command fails here until it is in one of the tables.
"""

import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from sqlmodel import select

import tasks.relay  # noqa: F401 - it sets what `Shop.here` replaces
from cli.main import imprint
from core import settings as core_settings
from credits.tables import CreditHold
from jobs import service
from jobs.lifecycle import sweeps
from jobs.services import send_outbox_with, services
from jobs.stages import intake
from jobs.subjects import subject_settings
from storage.tables.jobs import Stage
from tasks.app import app
from tasks.ingress import profile_set_completed, train_lora
from tasks.rabbitmq.model_training import parse_message
from tests.contract.jobs import put_at
from tests.contract.processes import processes_at_once
from tests.contract.web import test_matrix, test_page_matrix
from tests.contract.web.conftest import RECIPE, REX, Api, problem
from tests.samples import FULL
from tests.site import MASCOT
from web.pages.session import COOKIE

KEY = "0123456789abcdef" * 2
OTHER = "f" * 32
AT_ONCE = 16 if FULL else 5


@dataclass
class Shop:
    """Ada with pictures, a subject that trains automatically, and a training that has ended."""

    api: Api
    pictures: list[str]
    ended: str
    secret: str
    cookie: str
    operator: str  # the cookie of an operator
    folder: Path

    def holds(self) -> set[str]:
        """The trainings that credits were ever held for."""
        with self.api.services.database.reading() as session:
            return set(session.exec(select(CreditHold.training_id)))

    def post(self, path: str, key: str, body: dict[str, Any] | None = None) -> str:
        headers = {"Idempotency-Key": key}
        answer = self.api.call("POST", path, self.secret, headers=headers, **({"json": body} if body else {}))
        assert answer.status_code in (200, 202), answer.text
        content = answer.json()
        return str(content["training"]["id"] if "training" in content else content["id"])

    def end(self, *jobs: str) -> None:
        for job_id in jobs:
            service.cancel(self.api.services, job_id)

    def send_form(self, path: str, key: str, by: str | None = None, **form: str) -> str:
        headers = {"origin": "http://testserver", "cookie": f"{COOKIE}={by or self.cookie}"}
        answer = self.api.call("POST", path, headers=headers, data={"key": key, **form})
        assert answer.status_code == 303, answer.text
        found = re.search(r"job_[0-9a-z]+", answer.headers["location"])
        assert found is not None, answer.headers["location"]
        return found[0]

    def here(self) -> None:
        """Make this process, a child of the test, one of the installation."""
        made = self.api.services.settings
        os.environ |= {"IMPRINT_HOME": str(made.home), "IMPRINT_DATABASE_URL": made.database}
        core_settings.settings.cache_clear()
        send_outbox_with(lambda _: True)

    def request(self, key: str) -> dict[str, Any]:
        return {
            "owner_id": "ada", "subject_id": "rex", "base_model": "sd15", "trigger_word": "sks", "resolution": 64,
            "max_steps": 10, "images": self.pictures, "idempotency_key": key,
        }  # fmt: skip

    def command(self, *arguments: str) -> str:
        self.here()
        done = CliRunner().invoke(imprint, [*arguments, "--json"])
        assert done.exit_code == 0, done.output
        return str(json.loads(done.stdout.splitlines()[-1]).get("job_id"))

    def task(self, work: Callable[[], dict[str, Any]]) -> str:
        self.here()
        content = work()
        return str((content.get("training") or content)["job_id"])

    def message(self, key: str) -> str:
        self.here()
        body = {"style_id": "rex", "owner_id": "ada", "image_paths": self.pictures, "resolution": 64, "max_steps": 10}
        parsed = parse_message(json.dumps(body).encode(), key, services().settings)
        return service.submit(services(), parsed.arguments, parsed.origin).job_id


def signed_in(api: Api, secret: str) -> str:
    answer = api.call("POST", "/sign-in", headers={"origin": "http://testserver"}, data={"token": secret})
    cookie = str(answer.cookies[COOKIE])
    api.client.cookies.clear()
    return cookie


@pytest.fixture
def shop(api: Api, tmp_path: Path) -> Iterator[Shop]:
    secret = api.token("ada")
    pictures = [intake.store_picture(api.services, "ada", "rex", b"picture %d" % number) for number in range(6)]
    wanted = {"train_automatically": True, "base_model": "sd15", "trigger_word": "sks"}
    subject_settings.change(api.services, "ada", "rex", wanted)
    ended = api.train(secret, pictures).json()["id"]
    service.cancel(api.services, ended)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for file in sorted(MASCOT.glob("*.png"))[:5]:
        (folder / file.name).write_bytes(file.read_bytes())
    cookies = [signed_in(api, token) for token in (secret, api.token(None, "read", "train", "operate"))]
    yield Shop(api, pictures, ended, secret, *cookies, folder)
    assert sweeps.run_audit(api.services) == []


@dataclass(frozen=True)
class Door:
    """Where a training starts: how it is called with a key, and whether that is done in a process of its own."""

    name: str
    start: Callable[[Shop, str], str] = field(repr=False)
    forks: bool = False


_FORM = {"credits_shown": "9999", "trigger_word": "sks", "base_model": "sd15", "resolution": "64", "max_steps": "10"}
_SUBMIT = ("--owner", "ada", "--trigger", "sks", "--resolution", "64", "--max-steps", "10", "--subject", "rex")
DOORS = [
    Door(
        "POST /api/influencer/{id}/lora/train",
        lambda shop, key: shop.post(f"{REX}/lora/train", key, {**RECIPE, "imageIds": shop.pictures}),
    ),
    Door("POST /api/trainings/{id}/retry", lambda shop, key: shop.post(f"/api/trainings/{shop.ended}/retry", key)),
    Door(
        "POST /api/influencer/{id}/profile-set/completed",
        lambda shop, key: shop.post(f"{REX}/profile-set/completed", key),
    ),
    Door("POST /subjects/{id}/train", lambda shop, key: shop.send_form("/subjects/rex/train", key, **_FORM)),
    Door("POST /trainings/{id}/again", lambda shop, key: shop.send_form(f"/trainings/{shop.ended}/again", key)),
    Door(
        "POST /operators/jobs/{id}/retry",
        lambda shop, key: shop.send_form(f"/operators/jobs/{shop.ended}/retry", key, by=shop.operator),
    ),
    Door("imprint.train_lora", lambda shop, key: shop.task(lambda: train_lora(**shop.request(key))), forks=True),
    Door(
        "imprint.profile_set_completed",
        lambda shop, key: shop.task(lambda: profile_set_completed("ada", "rex", key)),
        forks=True,
    ),
    Door("a message of model_training", lambda shop, key: shop.message(key), forks=True),
    Door(
        "imprint submit",
        lambda shop, key: shop.command("submit", str(shop.folder), *_SUBMIT, "--key", key),
        forks=True,
    ),
    Door("imprint retry", lambda shop, key: shop.command("retry", shop.ended, "--key", key), forks=True),
]
doors = pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)


def start(shop: Shop, door: Door, keys: Sequence[str]) -> list[str]:
    """What the door says for each key, all at once: in threads, or in processes of their own."""
    if door.forks:
        return processes_at_once([partial(door.start, shop, key) for key in keys])
    answers: list[Any] = [None] * len(keys)

    def call(number: int) -> None:
        try:
            answers[number] = door.start(shop, keys[number])
        except AssertionError as error:
            answers[number] = error

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(keys))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return answers


@doors
def test_twice_and_many_at_once_start_one(shop: Shop, door: Door) -> None:
    before = shop.holds()
    answers = start(shop, door, [KEY] * AT_ONCE)
    new = shop.holds() - before
    assert answers == [*new] * AT_ONCE, answers
    assert start(shop, door, [KEY]) == [*new]  # after them, as a client that heard no answer asks again
    assert shop.holds() - before == new
    # The key was all that kept them together: without it, each would be a training of its own.
    if "profile" not in door.name:
        shop.end(*new)  # the page would ask first
        assert start(shop, door, [OTHER]) != [*new]
        assert len(shop.holds() - before) == 2


def test_every_door_is_in_the_table(api: Api) -> None:
    """What is in none of the tables below is new: try whether it holds credits, and with one key only once."""
    routes = {f"{method} {path}" for method, path in test_matrix.routes(api)}
    starts = {door.name for door in DOORS}
    holding = {name for name in starts if name.startswith("POST ")}
    assert holding == {name for name in routes if re.search(r"/(train|retry|again|completed)$", name)}
    assert {task for task in app.tasks if task.startswith("imprint.")} >= (starts & set(app.tasks))
    assert {name for name in commands(imprint) if "--key" in options(imprint, name)} == {
        "submit", "retry", "grant", "refund",
    }  # fmt: skip


def commands(group: click.Group, before: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        yield f"{before}{name}"
        if isinstance(command, click.Group):
            yield from commands(command, f"{before}{name} ")


def options(group: click.Group, name: str) -> set[str]:
    command: click.Command = group
    for part in name.split():
        assert isinstance(command, click.Group)
        command = command.commands[part]
    return {option for parameter in command.params for option in parameter.opts}


def test_no_other_route_holds_credits(shop: Shop) -> None:
    """Every route is called twice with one key, by an owner who may do everything."""
    api = shop.api
    starts = {door.name for door in DOORS}
    # Ids of the two tables: those that hold credits have been called by the test above.
    rows = [(row.method, row.path, row.options) for row in test_matrix.ROWS]
    rows += [(row.method, row.path, {"data": row.form}) for row in test_page_matrix.ROWS if row.method == "POST"]
    before = shop.holds()
    called = 0
    for method, pattern, given in rows:
        if f"{method} {pattern}" in starts:
            continue
        path = pattern.replace("{imageId}", shop.pictures[-1]).replace("{name}", "x").replace("{sessionId}", "x")
        path = path.replace("{id}", shop.ended if "/trainings/" in path else "rex")
        headers = {"Idempotency-Key": KEY, "origin": "http://testserver", "cookie": f"{COOKIE}={shop.cookie}"}
        for _ in range(2):
            answer = api.call(method, path, shop.secret, headers=headers, **given)
            assert answer.status_code < 500 or pattern == "/readyz", f"{method} {pattern}: {answer.text}"
            called += 1
    assert called > 50
    assert shop.holds() == before


def test_a_key_is_of_one_request(shop: Shop) -> None:
    """The same key for another training, another route or another subject is refused, and holds nothing."""
    api = shop.api
    second = api.train(shop.secret, shop.pictures).json()["id"]
    service.cancel(api.services, second)
    shop.post(f"/api/trainings/{shop.ended}/retry", KEY)
    held = shop.holds()
    headers = {"Idempotency-Key": KEY}
    problem(api.call("POST", f"/api/trainings/{second}/retry", shop.secret, headers=headers), 409, "key_reused")
    problem(api.train(shop.secret, shop.pictures, headers=headers), 409, "key_reused")
    assert shop.holds() == held


def test_a_report_with_the_same_key_starts_one_although_a_picture_was_added(shop: Shop) -> None:
    path = f"{REX}/profile-set/completed"
    first = shop.post(path, KEY)
    service.cancel(shop.api.services, first)
    intake.store_picture(shop.api.services, "ada", "rex", b"one more")
    assert shop.post(path, KEY) == first
    assert shop.post(path, OTHER) != first
    subject_settings.change(
        shop.api.services, "ada", "max", {"train_automatically": True, "base_model": "sd15", "trigger_word": "sks"}
    )
    answer = shop.api.call(
        "POST", "/api/influencer/max/profile-set/completed", shop.secret, headers={"Idempotency-Key": KEY}
    )
    problem(answer, 409, "key_reused")


def test_a_form_sent_again_leads_to_its_training_although_the_credits_are_gone(shop: Shop) -> None:
    api = shop.api
    all_of_it = {**_FORM, "max_steps": "9000", "resolution": "512"}
    first = shop.send_form("/subjects/rex/train", KEY, **all_of_it)
    left = api.call("GET", "/api/account", shop.secret).json()
    assert left["available"] < left["held"]
    assert shop.send_form("/subjects/rex/train", KEY, **all_of_it) == first


@pytest.mark.parametrize("name", ["grant", "refund"])
def test_many_grants_or_refunds_with_one_key_are_one(shop: Shop, name: str) -> None:
    api = shop.api
    job_id = service.submit(api.services, {**shop.request("x"), "max_steps": 200, "resolution": 512}).job_id
    put_at(api.services, job_id, Stage.TRAIN, step=100)
    service.cancel(api.services, job_id)
    charged = service.get(api.services, job_id).credits.charged
    assert charged >= 1
    before = api.call("GET", "/api/account", shop.secret).json()["available"]
    arguments = ("grant", "ada", "1") if name == "grant" else ("refund", job_id, "1")
    door = Door(name, lambda shop, key: shop.command(*arguments, "--key", key), forks=True)
    answers = start(shop, door, [KEY] * AT_ONCE)
    assert answers == ["None"] * AT_ONCE, answers
    assert api.call("GET", "/api/account", shop.secret).json()["available"] == before + 1
