"""An owner is deleted from a whole running installation: database, store, result store, queues and home folder."""

import random
import secrets
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import httpx2
import pytest
import redis

from jobs.deletion import requests
from jobs.lifecycle import sweeps
from jobs.owners import accounts, tokens
from tests.contract.personal import places
from tests.site import Site, drawing, site, until


@pytest.fixture(scope="module")
def running(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("site"), base_model) as made:
        made.start("web")
        yield made


def in_redis(running: Site, words: list[bytes]) -> set[str]:
    """The keys of the broker and result store that have one of the words in their name or value."""
    assert running.redis is not None
    found = set()
    client = redis.Redis.from_url(running.redis.url)
    for key in client.scan_iter("*"):
        kind = client.type(key)
        value = {
            b"string": client.get, b"list": lambda name: client.lrange(name, 0, -1), b"hash": client.hgetall,
            b"set": client.smembers, b"zset": lambda name: client.zrange(name, 0, -1),
        }[kind](key)  # fmt: skip
        if any(word in key + repr(value).encode() for word in words):
            found.add(key.decode())
    return found


@pytest.mark.drawn
def test_an_owner_is_deleted_everywhere_though_the_worker_is_killed(running: Site, tmp_path: Path) -> None:
    owner, subject, trigger = (f"{name}-{secrets.token_hex(4)}" for name in ("ada", "rex", "hush"))
    accounts.grant(running.services, owner, 10_000)
    secret, _ = tokens.create(running.services, f"token of {owner}", owner_id=owner, scopes=("read", "train"))
    files = [drawing(tmp_path / f"{n}.png", n).read_bytes() for n in range(6)]
    with httpx2.Client(
        base_url=running.web_url, headers={"Authorization": f"Bearer {secret}"}, timeout=60, trust_env=False
    ) as api:
        sent = api.post(
            f"/api/influencer/{subject}/images",
            files=[("files", (f"{subject} {n}.png", file)) for n, file in enumerate(files)],
        )
        assert sent.status_code == 201, sent.text
        images = [image["id"] for image in sent.json()["images"]]
        # One through the task that waits for its end, whose result stays; one that is still training.
        request = {
            "owner_id": owner, "subject_id": subject, "images": images, "base_model": "sd15", "resolution": 64,
            "trigger_word": trigger, "max_steps": 2, "keep_checkpoints": True,
        }  # fmt: skip
        waited = running.application.send_task("imprint.lora", kwargs=request, queue="io")
        assert waited.get(timeout=120)["status"] == "ready"
        active = running.application.send_task(
            "imprint.train_lora", kwargs=request | {"max_steps": 100_000}, queue="io"
        ).get(timeout=60)["job_id"]
        running.wait(active, lambda view: view["step"] > 0)
        words = [owner.encode(), subject.encode(), trigger.encode()]
        assert in_redis(running, words)  # results
        encodings = running.settings.home / "encodings"
        assert list(encodings.rglob("*.safetensors"))
        refused = api.delete("/api/account")
        assert refused.status_code == 422
        accepted = api.delete("/api/account", params={"confirm": owner})
        assert accepted.status_code == 202, accepted.text
        assert api.get("/api/account").status_code == 401  # signed out at once
    deletion = accepted.json()["id"]
    # The worker that deletes is killed at random moments; the sweep launches it again.
    chance = random.Random(secrets.randbits(32))
    for _ in range(3):
        Event().wait(chance.uniform(0.0, 1.5))  # a random moment of its work
        running.kill("io")
        running.start("io")
    until(lambda: requests.get(running.services, deletion).status == "done", 240, "the deletion")
    until(lambda: not list(encodings.rglob("*.safetensors")), 120, "the encodings of the training worker")
    assert places(running.services, words) == set()
    assert list(running.services.store.list("")) == []
    assert in_redis(running, words) == set()
    assert sweeps.run_audit(running.services) == []
    assert "every deletion is done" in running.imprint("delete", "status").stdout
