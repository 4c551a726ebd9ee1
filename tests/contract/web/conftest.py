"""An app, and callers with tokens."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from core.settings import Settings
from jobs.owners import accounts, tokens
from jobs.services import Services
from tests.contract.jobs import make_services
from tests.servers.process import free_port
from tests.site import MASCOT, until
from web.__main__ import WebServer, server_config
from web.app import create_app
from web.server.limits import RateLimit

RECIPE: dict[str, Any] = {"baseModel": "sd15", "triggerWord": "sks", "resolution": 64, "maxSteps": 10}
REX = "/api/influencer/rex"


@dataclass
class Api:
    """The app as its callers see it. Nothing is sent to a broker: what a request writes stays in the outbox."""

    services: Services
    client: TestClient

    def call(self, method: str, path: str, secret: str | None = None, **options: Any) -> httpx2.Response:
        headers = dict(options.pop("headers", {}))
        if secret is not None:
            headers["Authorization"] = f"Bearer {secret}"
        answer: httpx2.Response = self.client.request(method, path, headers=headers, follow_redirects=False, **options)
        return answer

    def token(self, owner_id: str | None = None, *scopes: str, **options: Any) -> str:
        return tokens.create(self.services, "test", owner_id=owner_id, scopes=scopes or ("read", "train"), **options)[0]

    def upload(self, secret: str, count: int = 6, subject: str = "rex") -> list[str]:
        """Store mascot pictures; their ids."""
        files = [("files", (file.name, file.read_bytes())) for file in sorted(MASCOT.glob("*.png"))[:count]]
        answer = self.call("POST", f"/api/influencer/{subject}/images", secret, files=files)
        assert answer.status_code == 201, answer.text
        return [image["id"] for image in answer.json()["images"]]

    def train(self, secret: str, images: list[str], **more: Any) -> httpx2.Response:
        headers = more.pop("headers", {})
        body = {**RECIPE, "imageIds": images, **more}
        return self.call("POST", f"{REX}/lora/train", secret, json=body, headers=headers)


def make_api(settings: Settings) -> Iterator[Api]:
    services = make_services(settings)
    accounts.grant(services, "ada", 1000, key="welcome")
    with TestClient(create_app(services), raise_server_exceptions=False) as client:
        yield Api(services, client)
    services.database.close()


@pytest.fixture
def api(settings: Settings) -> Iterator[Api]:
    """On each kind of database; `ada` has 1,000 credits."""
    yield from make_api(settings)


@pytest.fixture(scope="module")
def lone_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One on SQLite for a module whose tests need no state of their own."""
    yield from make_api(Settings(_env_file=None, home=tmp_path_factory.mktemp("home")))


@contextmanager
def served(api: Api, **settings: object) -> Iterator[str]:
    """The app as `python -m web` serves it, over real HTTP."""
    configured = api.services.settings.model_copy(update={"web_port": free_port(), **settings})
    app = create_app(api.services)
    app.state.rate_limit = RateLimit(configured.web_rate_per_s)
    config = server_config(app, configured)
    server = WebServer(config, app.state.streams)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started, 60, "the server")
        yield f"http://127.0.0.1:{configured.web_port}"
    finally:
        server.should_exit = True
        thread.join(30)


def problem(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The answer is this problem, whole and in the one shape; its content."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    content: dict[str, Any] = answer.json()
    assert (content["status"], content["code"], content["type"]) == (status, code, f"urn:imprint:problem:{code}")
    assert content["title"]
    assert content["detail"]
    assert content["requestId"] == answer.headers["x-request-id"]
    return content


__all__ = ["RECIPE", "REX", "Api", "make_api", "problem", "served"]
