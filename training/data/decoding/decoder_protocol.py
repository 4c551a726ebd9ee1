"""The protocol between a worker and its decoder: frames of two lengths, a JSON head and a body of bytes."""

import json
import socket
import struct
import time
from typing import Any

_LENGTHS = struct.Struct(">II")
_MAX_HEAD = 64 * 1024


class ProtocolError(Exception):
    """The other side is gone, or sent an invalid frame."""


def send_frame(channel: socket.socket, head: dict[str, Any], body: bytes = b"", deadline: float | None = None) -> None:
    """Send one frame. Raises ProtocolError, and TimeoutError after `deadline` (monotonic seconds)."""
    text = json.dumps(head).encode()
    try:
        for part in (_LENGTHS.pack(len(text), len(body)) + text, body):
            channel.settimeout(_left(deadline))
            channel.sendall(part)
    except (ConnectionError, BrokenPipeError) as error:
        raise ProtocolError("the other side is gone") from error


def receive_frame(
    channel: socket.socket, max_body: int, deadline: float | None = None
) -> tuple[dict[str, Any], bytearray]:
    """Receive one frame. Raises ProtocolError, also for a body above `max_body`, and TimeoutError after `deadline`."""
    head_size, body_size = _LENGTHS.unpack(_exactly(channel, _LENGTHS.size, deadline))
    if head_size > _MAX_HEAD or body_size > max_body:
        raise ProtocolError(f"the frame is too large: {head_size} and {body_size} bytes")
    try:
        head = json.loads(_exactly(channel, head_size, deadline))
    except (ValueError, RecursionError) as error:
        raise ProtocolError("the head is not JSON") from error
    if not isinstance(head, dict):
        raise ProtocolError("the head is not a JSON object")
    return head, _exactly(channel, body_size, deadline)


def _exactly(channel: socket.socket, size: int, deadline: float | None) -> bytearray:
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        channel.settimeout(_left(deadline))
        try:
            got = channel.recv_into(view[at:])
        except ConnectionError as error:
            raise ProtocolError("the other side is gone") from error
        if not got:
            raise ProtocolError("the other side is gone")
        at += got
    return data


def _left(deadline: float | None) -> float | None:
    """Seconds until `deadline`. Raises TimeoutError after it: a timeout of 0 would make the socket non-blocking."""
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("past the deadline")
    return left
