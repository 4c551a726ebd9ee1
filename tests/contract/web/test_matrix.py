"""Every route of the app, called by everybody who must not: without a token, with one that is over, with another
owner's, with a wrong scope. A route that is not in the table fails the test.
"""

import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa
from sqlmodel import col

from core.clock import utcnow
from jobs import keys
from jobs.deletion import requests
from jobs.lifecycle import launches
from jobs.owners import tokens
from storage.tables.access import ApiToken
from storage.tables.jobs import Job, Status
from tests.contract.web import test_page_matrix
from tests.contract.web.conftest import REX, Api, problem


@dataclass(frozen=True)
class Row:
    """A route: how it is called, the scope it needs, its answer to the owner, and what a stranger gets of it."""

    method: str
    path: str
    scope: str | None  # None: open to all
    own: int
    stranger: Any = 404  # a status, or fields of the answer that say that there is nothing
    options: dict[str, Any] = field(default_factory=dict)


TRAIN = {"json": {"baseModel": "sd15", "triggerWord": "hush", "resolution": 64, "maxSteps": 2, "imageIds": []}}
ONE = "/api/trainings/{id}"
OF = "/api/influencer/{id}"
DRAWN = "/api/drawings/{drawingId}"
ROWS = [
    Row("GET", "/healthz", None, 200),
    Row("GET", "/readyz", None, 503),  # no broker here
    Row("GET", "/openapi.json", None, 200),
    Row("GET", "/docs", None, 200),
    Row("GET", f"{ONE}/file", None, 403, options={"params": {"expires": "1", "signature": "0" * 64}}),
    Row("GET", "/metrics", "operate", 200),
    Row("GET", "/api/account", "read", 200, {"granted": 0, "entries": [], "holds": []}),
    Row("GET", "/api/account/limits", "read", 200, 200),
    Row("GET", "/api/operate/turns", "operate", 200),
    Row("GET", "/api/operate/log", "operate", 200),
    Row("GET", "/api/operate/approvals", "operate", 200),
    Row("POST", "/api/operate/approvals/{id}", "operate", 404, options={"json": {"verdict": "accept"}}),
    Row("PUT", "/api/operate/limits", "operate", 422, options={"json": {"name": "unknown", "owner": "ada"}}),
    Row("PUT", "/api/operate/pauses/{scope}", "operate", 422, options={"json": {}}),
    Row("DELETE", "/api/operate/pauses/{scope}", "operate", 422),
    Row("GET", "/api/account/notices", "read", 200, {"email": None}),
    Row("PATCH", "/api/account/notices", "train", 200, {"email": None}, {"json": {"lowCredits": 5}}),
    Row("GET", "/api/account/sessions", "read", 200, {"sessions": []}),
    Row("DELETE", "/api/account/sessions/{sessionId}", "train", 204),
    Row("GET", f"{OF}/lora", "read", 200),
    Row("GET", f"{OF}/lora/status", "read", 200, {"latest": None, "history": []}),
    Row("GET", f"{OF}/lora/available-images", "read", 200, {"images": [], "good": 0}),
    Row("GET", f"{OF}/captions", "read", 200, {"captions": []}),
    Row("GET", f"{OF}/lora/settings", "read", 200, {"trainAutomatically": False, "triggerWord": None}),
    Row("GET", f"{OF}/images/{{imageId}}/preview", "read", 200),
    Row("GET", f"{OF}/images/{{imageId}}/crop", "read", 200),
    Row("GET", ONE, "read", 200),
    Row("GET", f"{ONE}/events", "read", 200),
    Row("GET", f"{ONE}/log", "read", 200),
    Row("GET", f"{ONE}/previews", "read", 200),
    Row("GET", f"{ONE}/previews/{{name}}", "read", 200),
    Row("GET", f"{ONE}/checkpoints", "read", 200),
    Row("GET", f"{ONE}/checkpoints/{{step}}", "read", 200),
    Row("GET", f"{ONE}/download", "read", 307),
    Row("GET", f"{ONE}/card", "read", 200),
    Row("GET", f"{ONE}/drawings", "read", 200),
    Row("POST", f"{ONE}/drawings", "train", 202, options={"json": {"prompt": "on a beach"}}),
    Row("GET", DRAWN, "read", 200),
    Row("GET", f"{DRAWN}/images/{{number}}", "read", 200),
    Row("POST", f"{DRAWN}/cancel", "train", 409),
    Row("POST", f"{OF}/lora/train", "train", 202, 422, TRAIN),
    Row("PATCH", f"{OF}/lora/settings", "train", 200, {"triggerWord": None}, {"json": {"classWord": "dog"}}),
    Row("POST", f"{OF}/profile-set/completed", "train", 200, {"started": False, "training": None}),
    Row("PATCH", f"{OF}/images/{{imageId}}", "train", 200, options={"json": {"caption": "seen"}}),
    Row("POST", f"{OF}/captions", "train", 200, {"captions": []}, {"json": {"find": "seen", "replace": "heard"}}),
    Row("POST", f"{OF}/captions/undo", "train", 200, 409),
    Row(
        "PUT",
        f"{OF}/images/{{imageId}}/crop",
        "train",
        200,
        options={"json": {"left": 0, "top": 0, "width": 400, "height": 400}},
    ),
    Row("DELETE", f"{OF}/images/{{imageId}}/crop", "train", 200),
    Row("DELETE", f"{OF}/images/notes", "train", 204, 204),
    Row("POST", f"{OF}/images", "train", 422, 422, {"json": {"url": "file:///etc/passwd"}}),
    Row("GET", f"{OF}/images/fetches/{{fetchId}}", "read", 200),
    Row("GET", f"{ONE}/review", "read", 409),
    Row("POST", f"{ONE}/review", "train", 409, options={"json": {}}),
    Row("POST", f"{ONE}/cancel", "train", 409),
    Row("POST", f"{ONE}/retry", "train", 202),
    Row("POST", f"{ONE}/checkpoints/{{step}}/deliver", "train", 404),  # there is no checkpoint of this step
    Row("DELETE", f"{OF}/images/{{imageId}}", "train", 204),
    Row("DELETE", "/api/account", "train", 422, 422),  # the owner's name is not repeated
    Row("GET", "/api/deletions", "read", 200, {"deletions": []}),
    Row("GET", "/api/deletions/{deletionId}", "read", 200),
    Row("DELETE", "/api/deletions/{deletionId}", "train", 409),  # it has begun
    Row("DELETE", OF, "train", 202),
    Row("DELETE", ONE, "train", 202),
]
GUARDED = [row for row in ROWS if row.scope is not None]


@dataclass
class World:
    """What Ada has: pictures, a ready training with a file and a preview; and names that no stranger may see."""

    api: Api
    ada: str
    job_id: str
    image_ids: list[str]
    fetch_id: str
    session_id: str
    drawing_id: str
    deletion_id: str

    def call(self, row: Row, secret: str | None, **more: Any) -> httpx2.Response:
        path = row.path.replace("{imageId}", self.image_ids[-1]).replace("{name}", "1-000000010_0.png")
        path = path.replace("{fetchId}", self.fetch_id)
        path = (
            path.replace("{step}", "7" if path.endswith("/deliver") else "50")
            .replace("{drawingId}", self.drawing_id)
            .replace("{number}", "0")
        )
        subject = "old" if (row.method, row.path) == ("DELETE", OF) else "rex"
        path = path.replace("{id}", subject if row.path.startswith(OF) else self.job_id)
        path = path.replace("{deletionId}", self.deletion_id)
        path = path.replace("{sessionId}", self.session_id).replace("{scope}", "family:unknown")
        options: dict[str, Any] = {**row.options, **more}
        if "/lora/train" in path:
            options["json"] = {**options["json"], "imageIds": self.image_ids[:6]}
        return self.api.call(row.method, path, secret, **options)

    def is_told_in(self, answer: httpx2.Response) -> bool:
        return any(secret in answer.text for secret in (self.job_id, self.drawing_id, *self.image_ids, "hush"))


@pytest.fixture(scope="module")
def world(lone_api: Api) -> World:
    ada = lone_api.token("ada", "read", "train")
    images = lone_api.upload(ada, 7)
    change = {"triggerWord": "hush", "baseModel": "sd15", "trainAutomatically": True}
    assert lone_api.call("PATCH", f"{REX}/lora/settings", ada, json=change).status_code == 200
    job_id = lone_api.train(ada, images[:6]).json()["id"]
    services = lone_api.services
    services.store.put(keys.lora(job_id), b"a file")
    services.store.put(keys.preview(job_id, 1, 10, 0, "png"), b"a picture")
    services.store.put(keys.kept_lora(job_id, 50), b"a checkpoint")
    ready = sa.update(Job).where(col(Job.id) == job_id)
    with services.database.writing() as session:
        session.connection().execute(
            ready.values(status=Status.READY, lora_key=keys.lora(job_id), lora_sha256="0" * 64, lora_bytes=6)
        )
        key = keys.kept_lora(job_id, 50)
        launches.record_event(session, job_id, "checkpoint", step=50, key=key, sha256="0" * 64, bytes=12)
    fetch = lone_api.call("POST", f"{REX}/images", ada, json={"url": "https://pictures.example/rex.jpg"})
    session_id = test_page_matrix.a_session(lone_api, ada)
    drawing_id = test_page_matrix.a_drawing(lone_api, job_id)
    gone = lone_api.upload(ada, 2, subject="old")[0]
    deletion = requests.delete_picture(services, gone)
    return World(lone_api, ada, job_id, images, fetch.json()["id"], session_id, drawing_id, deletion.id)


def routes(api: Api) -> set[tuple[str, str]]:
    """What the app answers, from its own table of routes."""
    found = set()
    for route in api.client.app.routes:  # type: ignore[attr-defined]
        inner = route.effective_route_contexts() if hasattr(route, "effective_route_contexts") else [route]
        found |= {(method, one.path) for one in inner for method in one.methods if method != "HEAD"}
    return found


def test_every_route_is_in_the_matrix(lone_api: Api) -> None:
    tables = [*ROWS, *test_page_matrix.ROWS]
    assert routes(lone_api) == {(row.method, row.path) for row in tables}
    assert len(routes(lone_api)) > 20  # the table of routes is really read


@pytest.mark.parametrize("row", GUARDED, ids=lambda row: f"{row.method} {row.path}")
def test_a_guarded_route(world: World, row: Row) -> None:
    api = world.api
    scopes = {"read", "train", "operate"} - {row.scope}
    owner = None if row.scope == "operate" else "ada"
    headers = {"Imprint-Owner": "ada"}

    # Nobody, or somebody with a token that is no good: 401, which says nothing of what is there.
    over, expired, revoked = "imp_" + "x" * 43, api.token(owner, row.scope, days=1), api.token(owner, row.scope)
    change(api, expired, expires_at=utcnow())
    change(api, revoked, revoked_at=utcnow())
    for secret in (None, "", "x", over, expired, revoked, world.ada[:-1]):
        answer = world.call(row, secret)
        problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert not world.is_told_in(answer)

    # A scope that is not this route's.
    answer = world.call(row, api.token(None, *scopes), headers=headers)
    problem(answer, 403, "forbidden")
    needed = "view" if row.scope == "operate" and row.method == "GET" else row.scope
    assert f'scope="{needed}"' in answer.headers["www-authenticate"]

    if row.scope != "operate":
        # Another owner, by a token of its own and by a service token that names it: as if nothing were there.
        for secret, named in (
            (api.token("bob", row.scope), {}),
            (api.token(None, row.scope), {"Imprint-Owner": "bob"}),
        ):
            answer = world.call(row, secret, headers=named)
            assert not world.is_told_in(answer), answer.text
            if isinstance(row.stranger, int):
                assert answer.status_code == row.stranger, answer.text
            else:
                assert {name: answer.json()[name] for name in row.stranger} == row.stranger
        problem(world.call(row, api.token("bob", row.scope), headers=headers), 403, "forbidden")
        problem(world.call(row, api.token(None, row.scope)), 400, "bad_request")

    # And the owner is let in, with just this scope: else the refusals above would prove nothing.
    answer = world.call(row, api.token(owner, row.scope))
    assert answer.status_code == row.own, answer.text


def test_open_routes_need_nothing(world: World) -> None:
    for row in ROWS:
        if row.scope is None:
            assert world.call(row, None).status_code == row.own, row


def test_what_strangers_tried_changed_nothing(world: World) -> None:
    """Bob's settings are Bob's; Ada's job, words and pictures are as she left them."""
    settings = world.api.call("GET", f"{REX}/lora/settings", world.ada).json()
    assert settings["triggerWord"] == "hush"
    bob = world.api.token("bob", "read")
    assert world.api.call("GET", "/api/account", bob).json()["granted"] == 0
    assert world.call(next(row for row in ROWS if row.path == ONE), world.ada).json()["status"] == "ready"


def test_a_checkpoint_is_listed_and_served(world: World) -> None:
    address = f"/api/trainings/{world.job_id}/checkpoints"
    [listed] = world.api.call("GET", address, world.ada).json()["checkpoints"]
    assert listed == {"step": 50, "sha256": "0" * 64, "bytes": 12, "url": f"{address}/50"}
    answer = world.api.call("GET", listed["url"], world.ada)
    assert (answer.status_code, answer.content) == (200, b"a checkpoint")
    assert f'filename="{world.job_id}-50.safetensors"' in answer.headers["content-disposition"]
    problem(world.api.call("GET", f"{address}/51", world.ada), 404, "not_found")


def test_a_signed_address_serves_one_file_for_a_while(world: World) -> None:
    address = world.api.call("GET", f"/api/trainings/{world.job_id}/download", world.ada).headers["location"]
    answer = world.api.call("GET", address)
    assert (answer.status_code, answer.content) == (200, b"a file")
    assert f'filename="{world.job_id}.safetensors"' in answer.headers["content-disposition"]
    assert int(httpx2.URL(address).params["expires"]) - time.time() <= 900
    later = str(int(httpx2.URL(address).params["expires"]) + 1)
    for name, value in (("expires", later), ("signature", "f" * 64)):
        problem(world.api.call("GET", str(httpx2.URL(address).copy_set_param(name, value))), 403, "forbidden")
    other = address.replace(world.job_id, "job_other")
    problem(world.api.call("GET", other), 403, "forbidden")


def change(api: Api, secret: str, **values: Any) -> None:
    found = tokens.authenticate(api.services, secret)
    assert found is not None
    with api.services.database.writing() as session:
        session.connection().execute(sa.update(ApiToken).where(col(ApiToken.id) == found.id).values(**values))


def test_the_newest_lora_comes_with_an_address_or_with_why_not(world: World) -> None:
    api = world.api
    content = api.call("GET", f"{REX}/lora", world.ada, params={"baseModel": "sd15"}).json()
    assert (content["trainingId"], content["triggerWord"], content["strength"]) == (world.job_id, "sks", 1.0)
    assert content["file"] == f"{world.job_id}.safetensors"
    assert api.call("GET", content["url"]).content == b"a file"
    none = problem(api.call("GET", f"{REX}/lora", world.ada, params={"baseModel": "sdxl"}), 404, "not_found")
    assert none["detail"] == "this subject was never trained on this base model"
    problem(api.call("GET", f"{REX}/lora", world.ada, params={"baseModel": ""}), 422, "spec_invalid")


def test_no_token_is_kept(world: World) -> None:
    with world.api.services.database.reading() as session:
        kept = session.connection().execute(sa.select(sa.table("api_token", sa.column("sha256")))).scalars().all()
    assert world.ada.removeprefix("imp_") not in json.dumps(kept)
    assert all(len(sha256) == 64 for sha256 in kept)
