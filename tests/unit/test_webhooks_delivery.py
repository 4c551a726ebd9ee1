"""Deliveries to a real receiver on loopback, that checks signatures with the standard's own package."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook

from core.clock import utcnow
from core.outbound.guard import Guard
from notifications import webhooks
from notifications.messages import Message
from notifications.retries import SCHEDULE_S, Verdict
from notifications.signing import parse_secrets
from notifications.webhooks import Sender

KEY = "whsec_" + "A" * 40
JOB: dict[str, Any] = {
    "job_id": "job_1",
    "model_id": "model_1",
    "attempt": 1,
    "credits": {"held": 0, "charged": 80, "refunded": 20},
    "lora": {"key": "models/model_1/lora_weights.safetensors", "sha256": "ab" * 32, "bytes": 3},
}


class Receiver:
    """Answers with what `answers` says, in turn, and keeps what it got."""

    def __init__(self, *answers: tuple[int, dict[str, str]]) -> None:
        self.answers = list(answers)
        self.got: list[tuple[str, str, dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_PATCH(self) -> None:
                content = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append((self.command, self.path, dict(self.headers), content))
                status, headers = receiver.answers.pop(0)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server.server_port}/app/"


def sender_to(receiver: Receiver) -> Sender:
    """The guarded client itself, allowed to call this one receiver on loopback."""
    return Guard(allow_hosts=[f"127.0.0.1:{receiver.server.server_port}"], timeout_s=10).send


@pytest.fixture
def receive() -> Iterator[Callable[..., Receiver]]:
    running: list[tuple[Receiver, threading.Thread]] = []

    def start(*answers: tuple[int, dict[str, str]]) -> Receiver:
        receiver = Receiver(*answers)
        thread = threading.Thread(target=receiver.server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((receiver, thread))
        return receiver

    yield start
    for receiver, thread in running:
        receiver.server.shutdown()
        receiver.server.server_close()
        thread.join()


def message_to(base: str) -> Message:
    now = utcnow()
    payload = webhooks.payload(JOB, "training.completed", base)
    return Message("msg_1", "notice", "training.completed", "job_1", "ada", base, 2, payload, now, now, 0)


def test_a_delivery_as_the_standard_has_it(receive: Callable[..., Receiver]) -> None:
    receiver = receive((204, {}))
    message = message_to(receiver.base)
    outcome = webhooks.deliver(message, sender_to(receiver), utcnow(), secrets=parse_secrets(KEY))
    assert (outcome.verdict, outcome.status) == (Verdict.SENT, 204)
    ((method, path, headers, content),) = receiver.got
    assert (method, path) == ("PATCH", "/app/api/models/model_1/status")
    assert headers["content-type"] == "application/json"
    told = Webhook(KEY).verify(content, headers)
    assert told["training_status"] == "completed"
    assert told["data"]["sequence"] == 2


def test_attempts_share_the_id_and_the_body_but_not_the_time(receive: Callable[..., Receiver]) -> None:
    receiver = receive((500, {}), (200, {}))
    message, sender, now = message_to(receiver.base), sender_to(receiver), utcnow()
    first = webhooks.deliver(message, sender, now - timedelta(seconds=100), secrets=parse_secrets(KEY))
    assert first.verdict is Verdict.RETRY
    assert (
        webhooks.deliver(replace(message, attempts=1), sender, now, secrets=parse_secrets(KEY)).verdict is Verdict.SENT
    )
    (_, _, before, content), (_, _, after, again) = receiver.got
    assert content == again
    assert before["webhook-id"] == after["webhook-id"] == "msg_1"
    assert int(after["webhook-timestamp"]) - int(before["webhook-timestamp"]) == 100
    for headers in (before, after):
        Webhook(KEY).verify(content, headers)


def test_a_redirect_is_a_failure_and_is_not_followed(receive: Callable[..., Receiver]) -> None:
    witness = receive((200, {}))
    receiver = receive((307, {"location": witness.base}))
    outcome = webhooks.deliver(message_to(receiver.base), sender_to(receiver), utcnow())
    assert (outcome.verdict, outcome.status) == (Verdict.RETRY, 307)
    assert witness.got == []


def test_retry_after_comes_through(receive: Callable[..., Receiver]) -> None:
    receiver = receive((429, {"Retry-After": "77"}))
    now = utcnow()
    outcome = webhooks.deliver(message_to(receiver.base), sender_to(receiver), now)
    assert outcome.next_due == now + timedelta(seconds=77)


def test_without_a_secret_it_goes_unsigned(receive: Callable[..., Receiver]) -> None:
    receiver = receive((200, {}))
    webhooks.deliver(message_to(receiver.base), sender_to(receiver), utcnow())
    ((_, _, headers, content),) = receiver.got
    assert "webhook-signature" not in headers
    assert json.loads(content)["type"] == "training.completed"


def test_no_answer_is_tried_through_the_whole_schedule(receive: Callable[..., Receiver]) -> None:
    receiver = receive()
    receiver.server.shutdown()
    receiver.server.server_close()  # nobody listens there now
    message, sender, now = message_to(receiver.base), sender_to(receiver), utcnow()
    verdicts = [
        webhooks.deliver(replace(message, attempts=attempts), sender, now).verdict
        for attempts in range(len(SCHEDULE_S))
    ]
    assert verdicts == [Verdict.RETRY] * 9 + [Verdict.DEAD]


def test_an_address_that_we_will_not_call_is_final(receive: Callable[..., Receiver]) -> None:
    witness = receive((200, {}))
    outcome = webhooks.deliver(message_to(witness.base), Guard(timeout_s=10).send, utcnow())
    assert (outcome.verdict, outcome.alert) == (Verdict.DEAD, True)
    assert witness.got == []
