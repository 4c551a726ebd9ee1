"""A mail server on loopback that keeps what it gets, and a JSON endpoint that stands for an operators' channel."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller

from tests.servers.process import free_port


class Mailbox:
    """What an SMTP server took, in order.

    `refusal` is the answer to each message while it is set; recipients in `deferred` are asked to try again later.
    """

    def __init__(self) -> None:
        self.got: list[EmailMessage] = []
        self.recipients: list[list[str]] = []
        self.refusal = ""
        self.deferred: set[str] = set()
        self.asked_later = 0
        self.url = ""

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        if address in self.deferred:
            self.asked_later += 1
            return "450 4.2.0 greylisted, try again later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        if self.refusal:
            return self.refusal
        self.recipients.append(envelope.rcpt_tos)
        message = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(message, EmailMessage)
        self.got.append(message)
        return "250 taken"

    def to(self, address: str) -> list[EmailMessage]:
        return [message for message in self.got if message["To"] == address]


@contextmanager
def mail_server() -> Iterator[Mailbox]:
    box = Mailbox()
    controller = Controller(box, hostname="127.0.0.1", port=free_port())
    box.url = f"smtp://127.0.0.1:{controller.port}"
    controller.start()
    try:
        yield box
    finally:
        controller.stop()


class Channel:
    """What a channel got. `works` says whether it takes anything."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.works = True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if outer.works:
                    outer.got.append(json.loads(body))
                self.send_response(200 if outer.works else 500)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://127.0.0.1:{self._server.server_port}/a-secret"


@contextmanager
def channel() -> Iterator[Channel]:
    made = Channel()
    thread = threading.Thread(target=made._server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made._server.shutdown()
        thread.join()
        made._server.server_close()
