"""The body of a request: how large it may be, and how slowly it may come."""

import asyncio
import time
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

_GRACE_S = 10.0  # before the minimum rate counts


@dataclass(frozen=True)
class BodyLimits:
    """`upload_bytes` limits uploads of pictures, `max_bytes` other bodies; the rest holds for every body."""

    upload_bytes: int
    max_bytes: int
    timeout_s: float
    min_bytes_per_s: int

    def apply(self, receive: Receive, limit: int) -> Receive:
        """`receive` for a body of at most `limit` bytes. Raises HTTPException: 413 if it is larger, 408 if too slow."""
        begun, size, whole = time.monotonic(), 0, False

        async def receive_limited() -> Message:
            nonlocal size, whole
            if whole:  # what comes now is only that the client has gone
                return await receive()
            try:
                async with asyncio.timeout(self._left_s(begun, size)):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, headers={"Connection": "close"}) from None
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if size > limit:
                    raise HTTPException(413, headers={"Connection": "close"})
            return message

        return receive_limited

    def _left_s(self, begun: float, size: int) -> float:
        at_rate = _GRACE_S + size / self.min_bytes_per_s if self.min_bytes_per_s else self.timeout_s
        return max(0.0, begun + min(self.timeout_s, at_rate) - time.monotonic())
