"""What Imprint asks the application about one picture: its screener and its captioner, by HTTP or as a task."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx2
from pydantic import BaseModel, ConfigDict

from core.errors import Unreachable
from notifications.signing import sign

_MAX_ANSWER_BYTES = 10_000


class PictureQuestion(BaseModel):
    """What a screener gets: the picture, at an address that is valid for a while, and for which training."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    url: str
    owner_id: str
    subject_id: str
    job_id: str


class CaptionQuestion(PictureQuestion):
    """What a captioner gets besides."""

    instruction: str
    learns: str
    trigger_word: str
    class_word: str | None


# Sends an application's task (its name and queue) with a picture. The answer comes back to the task that the sender
# knows, with these arguments. Raises Unreachable.
SendTask = Callable[[str, str | None, PictureQuestion, Sequence[str]], None]


def ask(url: str, picture: PictureQuestion, message_id: str, *, secrets: Sequence[bytes], timeout_s: float) -> Any:
    """The JSON that the server answers to one signed POST. Raises Unreachable without an answer."""
    content = json.dumps(picture.model_dump()).encode()
    now_s = int(time.time())
    headers = {"content-type": "application/json", "webhook-id": message_id, "webhook-timestamp": str(now_s)}
    if secrets:
        headers["webhook-signature"] = sign(secrets, message_id, now_s, content)
    try:
        answer = httpx2.post(url, content=content, headers=headers, timeout=timeout_s, trust_env=False)
        if answer.status_code != 200 or len(answer.content) > _MAX_ANSWER_BYTES:
            raise Unreachable(f"the application's server answered {answer.status_code}")
        return answer.json()
    except (httpx2.HTTPError, ValueError) as error:
        raise Unreachable(f"the application's server does not answer ({type(error).__name__})") from None
