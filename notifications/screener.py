"""A screener at an HTTP address: asked with one signed POST, and its answer."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import httpx2
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from core.errors import Unreachable
from notifications.signing import sign

_MAX_ANSWER_BYTES = 10_000


class ScreeningVerdict(BaseModel):
    """What a screener says of a picture. `reason` is for the owner."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    verdict: Literal["accept", "refuse", "hold"]
    reason: Annotated[str, StringConstraints(strip_whitespace=True, max_length=500)] | None = None


def parse(answer: Any) -> ScreeningVerdict:
    """The verdict in an answer. Raises Unreachable for anything else: the screener is asked again."""
    try:
        return ScreeningVerdict.model_validate({"verdict": answer} if isinstance(answer, str) else answer)
    except ValidationError:
        raise Unreachable('the screener\'s answer is not {"verdict": "accept", "refuse" or "hold"}') from None


def ask(
    url: str, picture: Mapping[str, Any], message_id: str, *, secrets: Sequence[bytes], timeout_s: float
) -> ScreeningVerdict:
    """Ask a screener about one picture. Raises Unreachable without an answer that can be used."""
    content = json.dumps(dict(picture)).encode()
    now_s = int(time.time())
    headers = {"content-type": "application/json", "webhook-id": message_id, "webhook-timestamp": str(now_s)}
    if secrets:
        headers["webhook-signature"] = sign(secrets, message_id, now_s, content)
    try:
        answer = httpx2.post(url, content=content, headers=headers, timeout=timeout_s, trust_env=False)
        if answer.status_code != 200 or len(answer.content) > _MAX_ANSWER_BYTES:
            raise Unreachable(f"the screener answered {answer.status_code}")
        return parse(answer.json())
    except (httpx2.HTTPError, ValueError) as error:
        raise Unreachable(f"the screener does not answer ({type(error).__name__})") from None
