"""Hostile task messages, put on the queue of a real worker: it answers or drops each, and serves the next one."""

import base64
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis as redis_client
from celery import Celery
from kombu import Connection

from tests.hostile.messages import DROPPED, MESSAGES, SECRET, Message, asks
from tests.samples import sample
from tests.servers.rabbitmq import rabbitmq_server
from tests.servers.redis import redis_server
from tests.site import Site

GOOD = asks("done")


class Post:
    """A way onto the queue `io` that checks nothing, and the worker that takes from it."""

    def __init__(self, site: Site, put: Callable[[Message, dict[str, Any]], None]) -> None:
        self.site, self._put = site, put

    def send(self, message: Message) -> str:
        """Put it on the queue; the id by which it may be answered."""
        id_ = str(uuid.uuid4())
        headers = {
            "lang": "py", "task": message.task, "id": id_, "root_id": id_, "parent_id": None, "group": None,
            "argsrepr": "()", "kwargsrepr": "{}", "retries": 0, "timelimit": [None, None], "eta": None, "expires": None,
            "ignore_result": False, **message.headers,
        }  # fmt: skip
        if message.task is None:
            del headers["task"]
        if not message.with_id:
            del headers["id"]
        self._put(message, headers)
        return id_

    def answer(self, id_: str, timeout_s: float) -> str:
        """`done`, or an error as `Type: message`. Without one in time, DROPPED."""
        result = self.site.application.AsyncResult(id_)
        if timeout_s:
            result.get(timeout=timeout_s, propagate=False)
        meta = result.backend.get_task_meta(id_, cache=False)
        if meta["status"] in ("SUCCESS", "IGNORED"):
            return "done" if meta["status"] == "SUCCESS" else "Ignore"
        if meta["status"] != "FAILURE":
            return DROPPED if meta["status"] == "PENDING" else str(meta["status"])
        return f"{type(meta['result']).__name__}: {meta['result']}"


def onto_redis(url: str) -> Callable[[Message, dict[str, Any]], None]:
    client = redis_client.Redis.from_url(url)

    def put(message: Message, headers: dict[str, Any]) -> None:
        properties = {
            "correlation_id": headers.get("id"), "delivery_mode": 2, "priority": 0, "body_encoding": "base64",
            "delivery_info": {"exchange": "io", "routing_key": "io"}, "delivery_tag": str(uuid.uuid4()),
        }  # fmt: skip
        envelope = {
            "body": base64.b64encode(message.body).decode(), "content-type": message.content_type,
            "content-encoding": message.encoding, "headers": headers, "properties": properties,
        }  # fmt: skip
        client.lpush("io", json.dumps(envelope))

    return put


def onto_rabbitmq(url: str) -> Callable[[Message, dict[str, Any]], None]:
    connection = Connection(url)
    producer = connection.Producer()

    def put(message: Message, headers: dict[str, Any]) -> None:
        producer.publish(
            message.body, exchange="io", routing_key="io", headers=headers, content_type=message.content_type,
            content_encoding=message.encoding, correlation_id=str(headers.get("id"))[:200],
        )  # fmt: skip

    return put


@contextmanager
def running(kind: str, base_model: Path, folder: Path) -> Iterator[Post]:
    """A broker and a worker; at the end, that no log holds a secret."""
    server = redis_server(folder / "broker") if kind == "redis" else rabbitmq_server(folder / "broker")
    with server as broker:
        site = Site(folder / "site", base_model, broker.url)
        if kind == "rabbitmq":
            site.application = Celery("application", broker=broker.url, backend=f"db+{site.settings.database}")
        try:
            site.services.database.migrate()
            site.start("io")
            yield Post(site, (onto_redis if kind == "redis" else onto_rabbitmq)(broker.url))
            logs = "".join(log.read_text() for log in [site.log("io"), *site.settings.log_dir.glob("*")])
            assert SECRET not in logs, logs[max(0, logs.index(SECRET) - 1500) :][:2000]
        finally:
            site.end()


@pytest.fixture(scope="module")
def over_redis(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Post]:
    with running("redis", base_model, tmp_path_factory.mktemp("redis")) as post:
        yield post


@pytest.fixture(scope="module")
def over_rabbitmq(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Post]:
    with running("rabbitmq", base_model, tmp_path_factory.mktemp("rabbitmq")) as post:
        yield post


@pytest.mark.parametrize("name", MESSAGES)
def test_the_worker_answers_or_drops_it_and_serves_the_next(over_redis: Post, name: str) -> None:
    is_answered_or_dropped(over_redis, MESSAGES[name])


# The worker's own checks come after either broker, and have seen every message on Redis.
@pytest.mark.parametrize("name", sample(MESSAGES, 25, "messages"))
def test_the_same_over_rabbitmq(over_rabbitmq: Post, name: str) -> None:
    is_answered_or_dropped(over_rabbitmq, MESSAGES[name])


def is_answered_or_dropped(post: Post, message: Message) -> None:
    hostile = post.send(message)
    good = post.send(GOOD)
    assert post.answer(good, 60) == "done", post.site.log("io").read_text()[-3000:]
    got = post.answer(hostile, 0)  # the queue is first in, first out: what was to come has come
    assert got.startswith(message.wanted), got[:1000]
    assert SECRET not in got
    assert len(got) < 20_000
    assert post.site.processes["io"].alive
