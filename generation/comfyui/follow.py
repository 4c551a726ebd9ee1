"""Wait for a prompt to end. The history has the result; the websocket, if available, has the progress."""

import json
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from core.errors import GeneratorError, GeneratorTimeout, GeneratorUnreachable
from core.outbound import wire
from generation.comfyui.server import MAX_ANSWER_BYTES, ComfyUIServer, OutputImage
from generation.comfyui.text import one_line

_POLL_S = 1.0
_CONNECT_S = 10.0
_FORGOTTEN_S = 5.0  # neither in the queue nor in the history for this long: the server was restarted
_AWAY_S = 60.0  # give up on a server that does not answer for this long
_ENDS = ("execution_success", "execution_error", "execution_interrupted")


@dataclass(frozen=True)
class PromptProgress:
    """The progress of a prompt: its current node, and the steps of that node (0 of 0 if it has none)."""

    node_id: str | None  # None: the prompt is in the queue
    step: int = 0
    total: int = 0


OnProgress = Callable[[PromptProgress], None]


class EventSocket:
    """The server's events for one client. Some proxies allow no websocket; then no event ever arrives."""

    def __init__(self, socket: ClientConnection | None) -> None:
        self._socket = socket

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next event; None if none arrives in time."""
        if self._socket is None:
            time.sleep(timeout_s)
            return None
        try:
            message = self._socket.recv(timeout=timeout_s)
            event = json.loads(message) if isinstance(message, str) else None  # bytes are previews
        except TimeoutError:
            return None
        except (WebSocketException, OSError):
            self._socket = None
            return None
        except (ValueError, RecursionError):
            return None
        return event if isinstance(event, dict) else {}


@contextmanager
def open_events(server: ComfyUIServer, client_id: str) -> Generator[EventSocket]:
    """Open the socket before submitting a prompt: the server does not store events."""
    address = f"ws{server.url.removeprefix('http')}/ws?clientId={client_id}"
    with ExitStack() as stack:
        socket: ClientConnection | None = None
        with suppress(WebSocketException, OSError, TimeoutError):
            socket = stack.enter_context(
                connect(
                    address,
                    open_timeout=_CONNECT_S,
                    close_timeout=1.0,
                    max_size=MAX_ANSWER_BYTES,
                    compression=None,
                    proxy=None,
                )
            )
        yield EventSocket(socket)


def follow(
    server: ComfyUIServer, prompt_id: str, events: EventSocket, *, timeout_s: float, report: OnProgress = lambda _: None
) -> list[OutputImage]:
    """Wait until a prompt has ended; returns its pictures. If the wait ends early, the prompt is cancelled.

    Raises GeneratorError if a node failed, the prompt was interrupted or forgotten, or it has no picture;
    GeneratorTimeout after `timeout_s`; GeneratorUnreachable if the server is away for a minute.
    """
    try:
        return _pictures(server, _ended(server, prompt_id, events, time.monotonic() + timeout_s, report))
    except BaseException as error:
        # Also on Ctrl-C, on errors from `report`, and on answers that ComfyUI does not give. Cancelling has no effect
        # on a prompt that has ended.
        if not isinstance(error, GeneratorUnreachable):
            with suppress(GeneratorError):
                server.cancel(prompt_id)
        raise


def _ended(
    server: ComfyUIServer, prompt_id: str, events: EventSocket, deadline: float, report: OnProgress
) -> dict[str, Any]:
    """Wait for the history of a prompt."""
    polled = answered = known = time.monotonic()
    while time.monotonic() < deadline:
        event = events.receive(min(_POLL_S, max(0.0, deadline - time.monotonic())))
        ends = event is not None and _handle_event(event, prompt_id, report)
        now = time.monotonic()
        if not ends and now - polled < _POLL_S:
            continue
        polled = now
        try:
            history = server.history(prompt_id)
            if history is not None:
                return history
            running, waiting = server.queued()
        except GeneratorUnreachable:
            if time.monotonic() - answered > _AWAY_S:
                raise
            continue
        answered = time.monotonic()
        if prompt_id in waiting:
            report(PromptProgress(None))
        if prompt_id in running or prompt_id in waiting:
            known = answered
        elif answered - known > _FORGOTTEN_S:
            raise GeneratorError(
                f"{server.place} does not know the prompt any more: it was cancelled there, or the server was restarted"
            )
    raise GeneratorTimeout(f"{server.place} did not finish in time; the prompt was cancelled")


def _handle_event(event: dict[str, Any], prompt_id: str, report: OnProgress) -> bool:
    """Report progress; returns whether the event says that the prompt has ended."""
    data = event.get("data")
    if not isinstance(data, dict) or data.get("prompt_id") != prompt_id:
        return False
    kind, node = event.get("type"), data.get("node")
    step, total = wire.whole(data.get("value")), wire.whole(data.get("max"))
    if kind == "progress" and step is not None and total is not None:
        report(PromptProgress(one_line(node, 40), min(step, total), total))
    elif kind == "executing" and node is not None:
        report(PromptProgress(one_line(node, 40)))
    return kind in _ENDS or (kind == "executing" and node is None)


def _pictures(server: ComfyUIServer, history: dict[str, Any]) -> list[OutputImage]:
    """The pictures that a prompt saved, or its previews if it saved nothing else."""
    status = history.get("status")
    if isinstance(status, dict) and status.get("status_str") == "error":
        raise _failure(server, status)
    try:
        found = [
            OutputImage(str(image["filename"]), str(image["subfolder"]), str(image["type"]), str(node_id))
            for node_id, made in history["outputs"].items()
            for image in made.get("images") or []
        ]
    except (KeyError, TypeError, AttributeError):
        raise GeneratorError(f"{server.place} sent a response that ComfyUI's API does not have") from None
    saved = [picture for picture in found if picture.kind == "output"] or found
    if not saved:
        raise GeneratorError("the workflow finished without saving a picture")
    return saved


def _failure(server: ComfyUIServer, status: dict[str, Any]) -> GeneratorError:
    messages = status.get("messages")
    for message in messages if isinstance(messages, list) else []:
        kind, data = (message[0], message[1]) if isinstance(message, list) and len(message) == 2 else (None, None)
        if kind == "execution_interrupted":
            return GeneratorError(f"the prompt was interrupted on {server.place}")
        if kind == "execution_error" and isinstance(data, dict):
            node, name = one_line(data.get("node_id"), 40), one_line(data.get("node_type"), 60)
            reason = one_line(data.get("exception_message"))
            return GeneratorError(f"node {node} ({name}) failed: {reason}", {"node": node})
    return GeneratorError(f"the prompt failed on {server.place}; the server gives no reason")
