"""Whose turn it is: workers, pauses, limits and the audit log, for operators and owners."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from web.models.common import RequestModel, ResponseModel

Text = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]


class Limit(ResponseModel):
    """A limit of the owner; `value` is null if there is none."""

    name: str
    value: int | None
    used: int
    frees_at: datetime | None = Field(description="When the oldest of it no longer counts.")


class Limits(ResponseModel):
    """All limits of the owner."""

    limits: list[Limit]


class LimitChange(RequestModel):
    """A limit of an owner or of a token; without a value, the setting counts again."""

    name: Text
    value: int | None = Field(None, ge=0, le=2**53)
    owner: Text | None = None
    token: Text | None = None


class Worker(ResponseModel):
    """A training worker as it reported last."""

    worker: str
    queues: list[str]
    slots: int
    draining: bool
    alive: bool


class Pause(ResponseModel):
    """What is paused: `all`, `queue:NAME` or `family:NAME`."""

    scope: str
    reason: str
    paused_at: datetime


class PauseRequest(RequestModel):
    """Why it is paused."""

    reason: Text = ""


class Turns(ResponseModel):
    """The workers that report, and what is paused."""

    workers: list[Worker]
    pauses: list[Pause]


class HeldTraining(ResponseModel):
    """A training that waits for an operator's approval; it fails at `expiresAt`."""

    job_id: str
    owner_id: str
    subject_id: str
    credits: int
    reason: str
    since: datetime
    expires_at: datetime


class HeldTrainings(ResponseModel):
    """The trainings that wait for an approval, oldest first."""

    trainings: list[HeldTraining]


class Decision(RequestModel):
    """An operator's decision; the reason of a refusal is for the owner."""

    verdict: Literal["accept", "refuse"]
    reason: Annotated[Text, StringConstraints(max_length=200)] = ""


class Entry(ResponseModel):
    """Who did what. `actor`: `service`, `token`, `person`, `command` or `sweep`; `actorId`: which of them."""

    id: str
    at: datetime
    actor: str
    actor_id: str
    action: str
    job_id: str | None
    owner_id: str | None
    data: dict[str, Any]


class Log(ResponseModel):
    """Entries of the audit log, newest first."""

    entries: list[Entry]
