"""The RabbitMQ ingress while its broker restarts: every good message one job, every bad one a dead letter."""

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from amqp.exceptions import NotFound
from kombu import Connection
from sqlmodel import col, select

from core.settings import Settings
from jobs.lifecycle import sweeps
from jobs.owners import accounts
from jobs.services import Services
from notifications import outbox, webhooks
from notifications.messages import Message
from notifications.tables import OutboxMessage
from storage.tables import stream_positions
from storage.tables.jobs import Job, JobPicture
from tasks.rabbitmq.ingress_queue import lengths, replay
from tasks.rabbitmq.message_queues import REASON, open_queues, queues_of
from tests.samples import FULL
from tests.servers.process import ServerProcess
from tests.servers.rabbitmq import RabbitServer, rabbitmq_server
from tests.servers.redis import RedisServer, redis_server
from tests.site import ROOT, Site, until

pytestmark = pytest.mark.drawn

PICTURES = [f"rex/{number}.png" for number in range(5)]
GARBAGE = [
    b"{", b'{"style_id": "x"}', b"[]", b"\x00\xff", b'{"style_id": 1, "image_paths": [], "colour": 2}',
    json.dumps({"style_id": "s", "image_paths": PICTURES, "num_epochs": 0}).encode(),  # epochs are 1 or more
    json.dumps({"style_id": "s", "image_paths": ["/etc/passwd"] * 5}).encode(),
    json.dumps({"style_id": "s", "image_paths": PICTURES, "owner_id": "poor", "num_epochs": 10}).encode(),
]  # fmt: skip


QUEUES = queues_of(Settings(_env_file=None))
MANY = 900 if FULL else 300


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    with rabbitmq_server(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.fixture
def rabbit(node: RabbitServer) -> Iterator[RabbitServer]:
    """The node with none of the queues that a test declares."""
    if node.pid is None:  # a test failed after it had killed the node
        node.start()
    yield node
    with Connection(node.url) as connection:
        channel = connection.default_channel
        for name in ("model_training", "styles", "model_training.dead", "styles.dead"):
            channel.queue_delete(name)
            channel.exchange_delete(name)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def place(tmp_path: Path, rabbit: RabbitServer, redis: RedisServer) -> Iterator[Site]:
    """Its launches go to a broker from which no worker takes them."""
    yield from make_place(tmp_path, rabbit, redis.url)


@pytest.fixture
def place_without_broker(tmp_path: Path, rabbit: RabbitServer) -> Iterator[Site]:
    """Its Celery broker is nowhere: jobs are accepted all the same, and wait."""
    yield from make_place(tmp_path, rabbit, "redis://127.0.0.1:1/0")


def make_place(folder: Path, rabbit: RabbitServer, broker_url: str) -> Iterator[Site]:
    made = Site(
        folder, folder / "no-base", broker_url,
        IMPRINT_INGRESS_URL=rabbit.url, IMPRINT_INGRESS_OWNER="producer",
        IMPRINT_INGRESS_PATHS="https://93.184.215.14/pictures", IMPRINT_PRICES=json.dumps({"sd15": 1}),
    )  # fmt: skip
    accounts.grant(made.services, "producer", 1_000_000, key="welcome")
    yield made
    made.end()


def start(place: Site, name: str) -> ServerProcess:
    process = ServerProcess(
        [sys.executable, "-m", "celery", "-A", "tasks.app", "imprint", "ingress"],
        log=place.log(name), cwd=ROOT, env=place.surroundings(),
    )  # fmt: skip
    place.processes[name] = process
    return process


def good(number: int) -> bytes:
    return json.dumps({"style_id": number, "image_paths": PICTURES, "num_epochs": 10}).encode()


def publish(rabbit: RabbitServer, bodies: list[tuple[bytes, str | None]]) -> None:
    """As a producer with confirms does: each is in the queue when this returns."""
    with Connection(rabbit.url, transport_options={"confirm_publish": True}) as connection:
        open_queues(QUEUES, connection.channel)
        producer = connection.Producer(connection.default_channel)
        for body, message_id in bodies:
            properties = {"message_id": message_id} if message_id else {}
            producer.publish(
                body, exchange="model_training", routing_key="model_training", content_type="application/json",
                content_encoding="utf-8", **properties,
            )  # fmt: skip


def jobs_of(services: Services) -> Counter[str]:
    with services.database.reading() as session:
        return Counter(session.exec(select(Job.subject_id)).all())


def test_many_messages_a_restart_and_garbage(place_without_broker: Site, rabbit: RabbitServer) -> None:
    place = place_without_broker
    dice = random.Random(1)
    services = place.services
    named = MANY * 7 // 9
    messages: list[tuple[bytes, str | None]] = [(good(number), f"m-{number}") for number in range(named)]
    messages += [(good(number), None) for number in range(named, MANY)]  # known by their bodies
    messages += dice.choices(messages, k=50)  # the same again
    messages += [(GARBAGE[number % len(GARBAGE)], None) for number in range(50)]
    dice.shuffle(messages)
    publish(rabbit, messages[: MANY * 2 // 3])
    process = start(place, "ingress")
    until(lambda: sum(jobs_of(services).values()) > MANY // 6, 120, "some jobs")
    rabbit.kill()
    stopped_at = sum(jobs_of(services).values())
    assert stopped_at < MANY * 5 // 8, "killed in mid-stream"
    rabbit.start()
    publish(rabbit, messages[MANY * 2 // 3 :])
    until(lambda: len(jobs_of(services)) == MANY, 180, "every good message")
    until(lambda: lengths(services)["waiting"] == 0, 60, "nothing waits")
    assert process.alive, place.log("ingress").read_text()
    assert jobs_of(services) == Counter({str(number): 1 for number in range(MANY)})
    assert place.stop("ingress") == 0
    # A message whose dead letter was confirmed, but not its own end, is among them twice: at least once, never lost.
    dead = letters(rabbit)
    assert {body for body, _ in dead} == set(GARBAGE)
    assert 50 <= len(dead) <= 52
    assert Counter(reason.partition(":")[0] for _, reason in dead).keys() == {
        "malformed", "wrong_type", "unknown_field", "spec_invalid", "path_refused", "insufficient_credits",
    }  # fmt: skip
    assert all("etc/passwd" not in reason for _, reason in dead)
    assert sweeps.run_audit(services) == []
    # With credits, what was refused for them goes on; the others stay.
    accounts.grant(services, "poor", 100, key="welcome")
    replayed = replay(services, None, "insufficient_credits")
    assert replayed["replayed"] >= 6
    assert lengths(services) == {"waiting": replayed["replayed"], "dead": replayed["kept"], "consumers": 0}
    start(place, "ingress-2")
    until(lambda: lengths(services)["waiting"] == 0 and jobs_of(services)["s"] == 1, 60, "replayed")
    assert place.stop("ingress-2") == 0


def test_a_message_with_masks_becomes_a_job_that_has_them(place: Site, rabbit: RabbitServer) -> None:
    masks = ["masks/0.png", None, None, None, "https://93.184.215.14/masks/4.png"]
    message = {"style_id": "s", "image_paths": PICTURES, "mask_paths": masks, "num_epochs": 10}
    bad = json.dumps({**message, "style_id": "bad"}).encode()
    publish(rabbit, [(json.dumps({**message, "objective": {"masked": True}}).encode(), None), (bad, None)])
    start(place, "ingress")
    until(lambda: jobs_of(place.services) == Counter({"s": 1}), 60, "the job")
    until(lambda: lengths(place.services)["dead"] == 1, 60, "the letter")
    assert place.stop("ingress") == 0
    with place.services.database.reading() as session:
        kept = list(session.exec(select(JobPicture.mask).order_by(col(JobPicture.position))))
    assert kept == ["https://93.184.215.14/pictures/masks/0.png", *masks[1:]]
    [(body, reason)] = letters(rabbit)
    assert body == bad
    assert reason.startswith("spec_invalid")
    assert "objective.masked" in reason


def letters(rabbit: RabbitServer) -> list[tuple[bytes, str]]:
    """All dead letters, left where they are."""
    found = []
    with Connection(rabbit.url) as connection:
        dead = QUEUES.dead.bind(connection.default_channel)
        while (message := dead.get(no_ack=False)) is not None:
            body = message.body.encode() if isinstance(message.body, str) else bytes(message.body)
            found.append((body, message.headers[REASON]))
    return found


def test_a_database_that_is_away_loses_no_message(place: Site, rabbit: RabbitServer, tmp_path: Path) -> None:
    """The file's folder is gone for a while; nothing is acknowledged and nothing is refused meanwhile."""
    publish(rabbit, [(good(1), None)])
    broken = {"IMPRINT_DATABASE_URL": f"sqlite:///{tmp_path / 'file' / 'x.db'}"}
    blocked = tmp_path / "file"
    blocked.mkdir()
    (blocked / "x.db").mkdir()  # a folder where the database should be: SQLite cannot open it
    process = ServerProcess(
        [sys.executable, "-m", "celery", "-A", "tasks.app", "imprint", "ingress"],
        log=place.log("ingress"), cwd=ROOT, env=place.surroundings(**broken),
    )  # fmt: skip
    place.processes["ingress"] = process
    until(lambda: "database does not answer" in place.log("ingress").read_text(), 60, "noticed")
    seen = time.monotonic()
    until(lambda: place.log("ingress").read_text().count("database does not answer") >= 3, 60, "tried again")
    assert time.monotonic() - seen > 1, "it backs off"
    assert lengths(place.services)["dead"] == 0
    (blocked / "x.db").rmdir()
    account = Services(Settings(_env_file=None, home=tmp_path / "home", database_url=broken["IMPRINT_DATABASE_URL"]))
    accounts.grant(account, "producer", 1000, key="welcome")
    until(lambda: jobs_of(account)["1"] == 1, 60, "accepted once it is back")
    assert place.stop("ingress") == 0
    assert lengths(place.services) == {"waiting": 0, "dead": 0, "consumers": 0}
    account.database.close()


# ---- queues that a producer has made, and what it is told -----------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "classic": {},
    "priorities": {"x-max-priority": 5},
    "quorum": {"x-queue-type": "quorum", "x-delivery-limit": 3},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_queue_that_exists_is_consumed_as_it_is(place: Site, rabbit: RabbitServer, kind: str) -> None:
    """The producer knows no exchange, and declared its queue before the first start of the ingress."""
    with Connection(rabbit.url, transport_options={"confirm_publish": True}) as connection:
        channel = connection.default_channel
        channel.queue_declare("styles", durable=True, auto_delete=False, arguments=KINDS[kind])
        producer = connection.Producer(channel)
        for body in (good(1), GARBAGE[0]):
            producer.publish(body, exchange="", routing_key="styles", content_type="application/json",
                             content_encoding="utf-8")  # fmt: skip
        place.environment["IMPRINT_INGRESS_QUEUE"] = "styles"
        services = Services(place.settings.model_copy(update={"ingress_queue": "styles"}))
        process = start(place, "ingress")
        until(lambda: jobs_of(services) == Counter({"1": 1}) or not process.alive, 60, "the job")
        until(lambda: lengths(services)["dead"] == 1 or not process.alive, 60, "the dead letter")
        assert process.alive, place.log("ingress").read_text()
        assert replay(services, None, None) == {"replayed": 1, "kept": 0}
        until(lambda: lengths(services)["dead"] == 1, 60, "refused again")
        assert place.stop("ingress") == 0
        # As it was: RabbitMQ would refuse other arguments.
        channel.queue_declare("styles", durable=True, auto_delete=False, arguments=KINDS[kind])
    services.database.close()


def test_a_stream_is_read_from_where_the_last_reader_stopped(place: Site, rabbit: RabbitServer) -> None:
    """It keeps its messages: those before the first start count, and after a restart only new ones."""
    with stream_producer(rabbit) as put:
        put(good(1), GARBAGE[0], good(2))
        start(place, "ingress")
        until(lambda: jobs_of(place.services) == Counter({"1": 1, "2": 1}), 60, "the jobs of before the start")
        until(lambda: position(place.services) == 3, 60, "all three were read")
        place.kill("ingress")
        start(place, "ingress")
        put(good(3), GARBAGE[1], good(1))
        until(lambda: lengths(place.services)["dead"] == 2, 60, "the second dead letter")
        until(lambda: position(place.services) == 6, 60, "all six were read")
        assert place.stop("ingress") == 0
        assert jobs_of(place.services) == Counter({"1": 1, "2": 1, "3": 1})
        assert [body for body, _ in letters(rabbit)] == GARBAGE[:2], "none was refused twice"
        assert replay(place.services, None, None) == {"replayed": 2, "kept": 0}
        start(place, "ingress")
        until(lambda: lengths(place.services)["dead"] == 2, 60, "refused again")
        assert place.stop("ingress") == 0


def test_a_stream_is_read_on_after_a_kill_of_its_broker(place_without_broker: Site, rabbit: RabbitServer) -> None:
    """The position is in the database, so a message is worked on twice at most, and then it is the same job."""
    place, services = place_without_broker, place_without_broker.services
    with stream_producer(rabbit) as put:
        for first in range(0, MANY, 30):
            put(*(good(number) for number in range(first, first + 30)), GARBAGE[first // 30 % len(GARBAGE)])
    sent = MANY + len(range(0, MANY, 30))
    process = start(place, "ingress")
    until(lambda: sum(jobs_of(services).values()) > MANY // 6, 120, "some jobs")
    rabbit.kill()
    assert sum(jobs_of(services).values()) < MANY, "killed in mid-stream"
    rabbit.start()
    with stream_producer(rabbit) as put:
        put(good(MANY), GARBAGE[0])
    until(lambda: position(services) == sent + 2, 180, "every message was read")
    assert process.alive, place.log("ingress").read_text()
    assert place.stop("ingress") == 0
    assert jobs_of(services) == Counter({str(number): 1 for number in range(MANY + 1)})
    dead = [body for body, _ in letters(rabbit)]
    assert set(dead) == set(GARBAGE)
    # The letter of the message that was worked on at the kill may have been written twice.
    assert sent - MANY + 1 <= len(dead) <= sent - MANY + 2
    assert sweeps.run_audit(services) == []


@contextmanager
def stream_producer(rabbit: RabbitServer) -> Iterator[Callable[..., None]]:
    """Publishes bodies to a stream that it has declared, and waits until RabbitMQ has confirmed each."""
    with Connection(rabbit.url, transport_options={"confirm_publish": True}) as connection:
        # A broker that has just started accepts connections before its streams have a leader.
        until(lambda: _is_declared(connection), 60, "the stream")
        producer = connection.Producer(connection.default_channel)

        def put(*bodies: bytes) -> None:
            for body in bodies:
                producer.publish(body, exchange="", routing_key="model_training", content_type="application/json",
                                 content_encoding="utf-8")  # fmt: skip

        yield put


def _is_declared(connection: Connection) -> bool:
    arguments = {"x-queue-type": "stream", "x-max-length-bytes": 10_000_000}
    with connection.channel() as channel:
        try:
            channel.queue_declare("model_training", durable=True, auto_delete=False, arguments=arguments)
        except NotFound:
            return False
    return True


def position(services: Services) -> int | None:
    with services.database.reading() as session:
        return stream_positions.next_offset(session, "model_training")


def test_the_producer_is_told_every_fault_and_the_operators_find_it_in_the_log(
    place: Site, rabbit: RabbitServer
) -> None:
    services, webhook = place.services, "https://93.184.215.14"
    bad = {"style_id": 4711, "image_paths": PICTURES, "num_epochs": 0, "rank": 0, "colour": "red",
           "webhook_url": webhook, "reference": {"order": 7}}  # fmt: skip
    publish(rabbit, [
        (json.dumps({"style_id": 1, "image_paths": PICTURES, "model_id": 17, "num_epochs": 1}).encode(), "m-0"),
        (json.dumps(bad).encode(), "m-1"),
        (json.dumps({**bad, "model_id": 18}).encode(), "m-2"),
        (json.dumps({**bad, "model_id": 17}).encode(), "m-3"),  # of another training
        (json.dumps({"style_id": 2, "image_paths": PICTURES, "webhook_url": webhook, "owner_id": "poor"}).encode(),
         "m-4"),
        (json.dumps({**bad, "webhook_url": "http://127.0.0.1/"}).encode(), "m-5"),
        (json.dumps({**bad, "style_id": None}).encode(), "m-6"),
    ])  # fmt: skip
    start(place, "ingress")
    until(lambda: lengths(services)["dead"] == 6, 60, "all refused")
    assert place.stop("ingress") == 0
    answered = [sent(message) for message in refusals(services)]
    assert [url for url, _ in answered] == [
        f"{webhook}/api/subjects/4711/status", f"{webhook}/api/models/18/status",
        f"{webhook}/api/subjects/4711/status", f"{webhook}/api/subjects/2/status",
    ]  # fmt: skip
    content = answered[0][1]
    assert (content["training_status"], content["type"]) == ("failed", "training.refused")
    assert list(content["data"]["faults"]) == ["colour", "rank", "num_epochs"]
    assert all(f"{name}: " in content["failure_reason"] for name in ("colour", "rank", "num_epochs"))
    given = {"style_id": 4711, "message_id": "m-1", "owner_id": "producer", "reference": {"order": 7}}
    assert given.items() <= content["data"].items()
    assert answered[3][1]["data"]["failure_code"] == "insufficient_credits"
    lines = (place.settings.log_dir / "errors.jsonl").read_text().splitlines()
    logged = [line["message"] for line in map(json.loads, lines) if line["message"].startswith("refused a message")]
    assert len(logged) == 6
    assert "num_epochs: " in logged[0]


def refusals(services: Services) -> list[Message]:
    with services.database.reading() as session:
        query = select(OutboxMessage).where(OutboxMessage.topic == "training.refused")
        ids = [row.id for row in session.exec(query.order_by(col(OutboxMessage.created_at)))]
        return [found for found in (outbox.find(session, message_id) for message_id in ids) if found is not None]


def sent(message: Message) -> tuple[str, Any]:
    """Where a notice goes, and what it says."""
    calls: list[tuple[str, Any]] = []

    def send(method: str, url: str, content: bytes, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str]]:
        calls.append((url, json.loads(content)))
        return 200, {}

    webhooks.deliver(message, send, message.created_at)
    return calls[0]
