"""What Imprint asks the application about one picture: its screener and its captioner, by HTTP or as a task."""

import json
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import httpx2
from pydantic import BaseModel, ConfigDict

from core.errors import Unreachable
from notifications.signing import sign

ASK_AGAIN_S = 60
_URL_S = 3600
_MAX_URL_S = 7 * 24 * 3600  # S3 signs no longer ones
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


def is_due(name: str, since: datetime, asked_at: datetime | None, now: datetime) -> bool:
    """Whether to ask `name` again about a picture that waits since `since` and was last asked for at `asked_at`.

    An HTTP address is asked once a minute. A task stays in the application's queue until its worker gets there, and
    each new one makes that queue longer. So it is sent again after 1, 2, 4, 8, … minutes, in case the broker lost it.
    """
    if asked_at is None:
        return True
    waited_s = 0.0 if "://" in name else (asked_at - since).total_seconds()
    # Stages look once a minute and are some seconds late: a little early is better than a minute late.
    return (now - asked_at).total_seconds() > max(ASK_AGAIN_S - 1, waited_s - ASK_AGAIN_S / 2)


def url_lifetime_s(patience_s: float) -> int:
    """How long a picture's address is valid: a worker that is behind may still use the oldest task that counts."""
    return int(min(max(_URL_S, patience_s), _MAX_URL_S))


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
