"""The one shape of errors (RFC 9457, `application/problem+json`), and how ours become it.

Nothing of a request is repeated but the names of fields that look like names: neither bodies nor headers.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from starlette.exceptions import HTTPException

from core.errors import (
    IllegalMove,
    ImageInvalid,
    ImageRefused,
    ImageUnreachable,
    ImprintError,
    InsufficientCredits,
    KeyReused,
    LoraNotReady,
    NotFound,
    ObjectExists,
    SpecInvalid,
    StoreUnavailable,
    WorkerLost,
)
from storage.database import AWAY

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_TYPE = "urn:imprint:problem:"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}|[0-9]{1,4}")
_FIELD = re.compile(r"\b[a-z]+(_[a-z]+)+\b")
_RETRY_AFTER_S = 5
_OURS_SAID = "this is an error of ours; it was logged under the request's id"


class Problem(BaseModel):
    """What went wrong with a request."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "urn:imprint:problem:spec_invalid",
                "title": "The request has faults",
                "status": 422,
                "detail": "the request has 1 fault(s); they are named in `faults`",
                "code": "spec_invalid",
                "faults": {"rank": "Input should be less than or equal to 256"},
                "requestId": "req_01m80qb53x0000000000000000",
            }
        },
    )

    type: str = Field(description="`urn:imprint:problem:` and the code.")
    title: str
    status: int
    detail: str = Field(description="For people; may change.")
    code: str = Field(description="For programs; does not change.")
    faults: dict[str, str] | None = Field(None, description="Every fault of the request, by field.")
    requestId: str = Field(description="Also in the header `X-Request-Id`, and in our logs.")  # noqa: N815


class RequestRefused(Exception):
    """An answer that is a problem and is none of our own errors: 401, 403, 429 and their like."""

    def __init__(
        self,
        code: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        faults: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code, detail)
        self.code, self.detail, self.headers, self.faults = code, detail, dict(headers or {}), dict(faults or {})


# code: status and title
PROBLEMS = {
    "bad_request": (400, "The request cannot be read"),
    "unauthorized": (401, "No valid token"),
    "insufficient_credits": (402, "Not enough credits"),
    "forbidden": (403, "Not allowed"),
    "not_found": (404, "Not found"),
    "method_not_allowed": (405, "This address has no such method"),
    "key_reused": (409, "The idempotency key was used for another request"),
    "illegal_move": (409, "Not possible in this state"),
    "too_large": (413, "The body is too large"),
    "unsupported_media_type": (415, "The body's type is not known here"),
    "spec_invalid": (422, "The request has faults"),
    "image_invalid": (422, "No picture could be stored"),
    "image_unreachable": (422, "No picture could be fetched"),
    "rate_limited": (429, "Too many requests"),
    "internal": (500, "An error of ours"),
    "unavailable": (503, "Not available now"),
}
# Of every route that needs a token.
ALWAYS = ("unauthorized", "forbidden", "bad_request", "spec_invalid", "rate_limited", "internal", "unavailable")
_OF_STATUS = {status: code for code, (status, _) in reversed(PROBLEMS.items())}

# Our own errors: the first that fits counts. Where None stands, the message may quote the request.
_OURS: Sequence[tuple[type[ImprintError], str, str | None]] = (
    (SpecInvalid, "spec_invalid", "the request has faults; they are named in `faults`"),
    (KeyReused, "key_reused", "this Idempotency-Key came with another request before; use a new one"),
    (InsufficientCredits, "insufficient_credits", None),
    (LoraNotReady, "not_found", None),
    (NotFound, "not_found", "there is nothing of yours at this address"),
    (IllegalMove, "illegal_move", None),
    (ObjectExists, "illegal_move", None),
    (StoreUnavailable, "unavailable", "the object store does not answer; try again"),
    (WorkerLost, "unavailable", "pictures cannot be looked at just now; try again"),
    (ImageInvalid, "image_invalid", None),
    (ImageRefused, "image_unreachable", None),
    (ImageUnreachable, "image_unreachable", None),
)


def responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The answers of a route that are problems, for its documentation."""
    named: dict[int, list[str]] = {}
    for code in codes:
        named.setdefault(PROBLEMS[code][0], []).append(code)
    return {
        status: {
            "description": f"{PROBLEMS[codes[0]][1]} (`{'`, `'.join(codes)}`)",
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, codes in named.items()
    }


def answer(
    request: Request,
    code: str,
    detail: str,
    *,
    faults: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A problem as an answer."""
    status, title = PROBLEMS[code]
    request_id = str(request.scope.get("imprint.request_id", ""))
    problem = Problem(
        type=_TYPE + code,
        title=title,
        status=status,
        detail=detail,
        code=code,
        faults=dict(faults) if faults else None,
        requestId=request_id,
    )
    content = problem.model_dump(exclude_none=True)
    return JSONResponse(content, status, {"X-Request-Id": request_id, **(headers or {})}, MEDIA_TYPE)


def outside(name: str) -> str:
    """A field's name as it is called outside: `images.3` is `imageIds.3`, and `images.3.mask` `maskIds.3`."""
    parts = [to_camel(part) if _NAME.fullmatch(part) else "?" for part in name.split(".")]
    if parts[0] == "images" and parts[2:] == ["mask"]:
        return f"maskIds.{parts[1]}"
    return ".".join(["imageIds" if parts[0] == "images" else parts[0], *parts[1:]])


def _worded(fault: str) -> str:
    """A fault in the words of outside."""
    return _FIELD.sub(lambda found: to_camel(found[0]), fault)


def install(app: FastAPI) -> None:
    """Let every error of `app` be answered in this one shape."""
    for error in (RequestRefused, RequestValidationError, HTTPException, ImprintError, *AWAY):
        app.add_exception_handler(error, _answered)
    app.add_exception_handler(Exception, _unexpected)
    describe = app.openapi

    def described() -> dict[str, Any]:
        document = describe()
        # No route returns one, so FastAPI does not know the shape that `responses` refers to.
        document["components"]["schemas"].setdefault("Problem", Problem.model_json_schema())
        return document

    app.openapi = described  # type: ignore[method-assign]


def _answered(request: Request, error: Exception) -> JSONResponse:
    refused = refusal(error)
    return answer(request, refused.code, refused.detail, faults=refused.faults, headers=refused.headers)


def _unexpected(request: Request, _error: Exception) -> JSONResponse:
    return answer(request, "internal", _OURS_SAID)


def refusal(error: Exception) -> RequestRefused:
    """What is said outside of an error that was foreseen: of ours, of a request, or of a database that is away."""
    if isinstance(error, RequestRefused):
        return error
    if isinstance(error, RequestValidationError):
        return _not_valid(error)
    if isinstance(error, HTTPException):
        code = _OF_STATUS.get(error.status_code, "bad_request" if error.status_code < 500 else "internal")
        return RequestRefused(code, PROBLEMS[code][1].lower(), error.headers)
    if isinstance(error, ImprintError):
        return _ours(error)
    log.warning("the database does not answer (%s)", type(error).__name__)
    return RequestRefused(
        "unavailable", "the database does not answer; try again", {"Retry-After": str(_RETRY_AFTER_S)}
    )


def _not_valid(error: RequestValidationError) -> RequestRefused:
    faults = {}
    for fault in error.errors():
        where = [str(part) for part in fault["loc"] if part != "body"] or ["body"]
        name = outside(".".join(where[1:] if where[0] in ("query", "path", "header") and where[1:] else where))
        faults[name] = "is not JSON" if fault["type"] == "json_invalid" else str(fault["msg"])
    return RequestRefused("spec_invalid", f"the request has {len(faults)} fault(s)", faults=faults)


def _ours(error: ImprintError) -> RequestRefused:
    for kind, code, said in _OURS:
        if isinstance(error, kind):
            faults = error.faults if isinstance(error, SpecInvalid) else {}
            told = {outside(name): _worded(fault) for name, fault in faults.items()}
            retry = {"Retry-After": str(_RETRY_AFTER_S)} if code == "unavailable" else None
            return RequestRefused(code, said or error.message, retry, told)
    log.error("unexpected: %s: %s", error.code, error)
    return RequestRefused("internal", _OURS_SAID)
