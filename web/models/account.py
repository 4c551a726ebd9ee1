"""An owner's credits, e-mail settings and sessions of the page."""

from datetime import datetime
from typing import Literal

from pydantic import ConfigDict, Field

from notifications.preferences import EVENTS, MOST_CREDITS
from web.models.common import JOB, RequestModel, ResponseModel


class Entry(ResponseModel):
    """One movement of credits."""

    seq: int
    kind: Literal["grant", "hold", "settle", "release", "expire", "refund"]
    amount: int
    training_id: str | None
    created_at: datetime


class HoldNow(ResponseModel):
    """Credits reserved for a training that is not final."""

    training_id: str
    amount: int
    expires_at: datetime


class Account(ResponseModel):
    """An owner's credits."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "available": 940,
                "held": 60,
                "spent": 0,
                "granted": 1000,
                "holds": [{"trainingId": JOB, "amount": 60, "expiresAt": "2026-11-29T10:00:00+00:00"}],
                "entries": [
                    {"seq": 2, "kind": "hold", "amount": 60, "trainingId": JOB,
                     "createdAt": "2026-11-22T10:00:00+00:00"}
                ],
                "next": None,
            }
        }
    )  # fmt: skip

    available: int
    held: int
    spent: int
    granted: int
    holds: list[HoldNow]
    entries: list[Entry] = Field(description="Newest first.")
    next: int | None = Field(description="The value of `before` for the next page; null on the last page.")


class NoticesChange(RequestModel):
    """Changes to an owner's e-mail settings. A field that is left out stays as it is; null clears it."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"email": "ada@example.org", "events": ["training.failed"], "lowCredits": 50}}
    )

    email: str | None = Field(None, max_length=320)
    events: list[Literal[EVENTS]] | None = Field(None, description="Null: all except `training.processing`.")  # type: ignore[valid-type]
    low_credits: int | None = Field(None, ge=0, le=MOST_CREDITS, strict=True)


class Notices(ResponseModel):
    """An owner's e-mail settings."""

    email: str | None = Field(description="Null: no e-mails.")
    events: list[str]
    low_credits: int | None = Field(description="An e-mail is sent when fewer credits are available; null: never.")


class Session(ResponseModel):
    """A session of the page that acts for the owner."""

    id: str
    token_id: str
    token_name: str
    browser: str = Field(description="The browser as it named itself.")
    created_at: datetime
    expires_at: datetime


class Sessions(ResponseModel):
    """The sessions of the page that have not ended."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "sessions": [
                    {"id": "session_01m80qb53x0000000000000000", "tokenId": "token_01m80qb53x0000000000000000",
                     "tokenName": "page", "browser": "Mozilla/5.0", "createdAt": "2026-11-22T10:00:00+00:00",
                     "expiresAt": "2026-11-29T10:00:00+00:00"}
                ]
            }
        }
    )  # fmt: skip

    sessions: list[Session] = Field(description="Newest first.")
