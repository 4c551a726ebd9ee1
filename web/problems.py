"""Errors of the API as RFC 9457 problems (`application/problem+json`).

A problem repeats nothing of a request except field names that look like field names, and the file names of pictures: no
other values, no headers.
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
    TooManyRequests,
    WorkerLost,
)
from storage.database import AWAY

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_TYPE = "urn:imprint:problem:"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}|[0-9]{1,4}")
_FIELD = re.compile(r"\b[a-z]+(_[a-z]+)+\b")
_RETRY_AFTER_S = 5
INTERNAL_DETAIL = "the service failed; its log has the cause under this request's id"


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
    """A request that the web layer itself refuses: 401, 403, 429 and the like."""

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
    "bad_request": (400, "The request cannot be parsed"),
    "unauthorized": (401, "No valid token"),
    "insufficient_credits": (402, "Not enough credits"),
    "forbidden": (403, "Not allowed"),
    "not_found": (404, "Not found"),
    "method_not_allowed": (405, "This address does not support the method"),
    "key_reused": (409, "The idempotency key was used for another request"),
    "illegal_move": (409, "Not possible in this state"),
    "too_slow": (408, "The body comes too slowly"),
    "too_large": (413, "The body is too large"),
    "unsupported_media_type": (415, "The body has an unsupported media type"),
    "spec_invalid": (422, "The request has faults"),
    "image_invalid": (422, "No picture was stored"),
    "image_unreachable": (422, "No picture was fetched"),
    "rate_limited": (429, "Too many requests"),
    "internal": (500, "The service failed"),
    "unavailable": (503, "Temporarily unavailable"),
}
# Of every route that needs a token.
ALWAYS = ("unauthorized", "forbidden", "bad_request", "spec_invalid", "rate_limited", "internal", "unavailable")
_OF_STATUS = {status: code for code, (status, _) in reversed(PROBLEMS.items())}

# The problem of each kind of Imprint's errors; the first match wins. None: the error's own message is the detail. The
# others have a fixed detail, since their messages can contain parts of the request or internal addresses.
_DETAILS: Sequence[tuple[type[ImprintError], str, str | None]] = (
    (SpecInvalid, "spec_invalid", "the request has faults; they are named in `faults`"),
    (KeyReused, "key_reused", "this Idempotency-Key was used for another request; use a new key for a new request"),
    (InsufficientCredits, "insufficient_credits", None),
    (LoraNotReady, "not_found", None),
    (NotFound, "not_found", "there is no such training, drawing, picture or LoRA, or it belongs to another owner"),
    (IllegalMove, "illegal_move", None),
    (TooManyRequests, "rate_limited", None),
    (ObjectExists, "illegal_move", None),
    (StoreUnavailable, "unavailable", "the object store does not answer; try again in a few seconds"),
    (WorkerLost, "unavailable", "the picture decoder stopped; try again in a few seconds"),
    (ImageInvalid, "image_invalid", None),
    (ImageRefused, "image_unreachable", None),
    (ImageUnreachable, "image_unreachable", None),
)
FIXED_DETAILS = tuple(detail for _, _, detail in _DETAILS if detail)


def responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The problems that a route may answer with, for its documentation."""
    named: dict[int, list[str]] = {}
    with_body = ("too_slow",) if "too_large" in codes else ()
    for code in (*codes, *with_body):
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
    """The response for a problem."""
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


def api_name(name: str) -> str:
    """A field's name in the API: `images.3` is `imageIds.3`, and `images.3.mask` is `maskIds.3`."""
    parts = [to_camel(part) if _NAME.fullmatch(part) else "?" for part in name.split(".")]
    if parts[0] == "images" and parts[2:] == ["mask"]:
        return f"maskIds.{parts[1]}"
    return ".".join(["imageIds" if parts[0] == "images" else parts[0], *parts[1:]])


def _with_api_names(fault: str) -> str:
    """A fault's text with the names that fields have in the API."""
    return _FIELD.sub(lambda found: to_camel(found[0]), fault)


def install(app: FastAPI) -> None:
    """Make `app` answer every expected error with a problem; the middleware answers the others."""
    for error in (RequestRefused, RequestValidationError, HTTPException, ImprintError, *AWAY):
        app.add_exception_handler(error, _problem_response)
    describe = app.openapi

    def described() -> dict[str, Any]:
        document = describe()
        # No route returns one, so FastAPI does not know the shape that `responses` refers to.
        document["components"]["schemas"].setdefault("Problem", Problem.model_json_schema())
        return document

    app.openapi = described  # type: ignore[method-assign]


def _problem_response(request: Request, error: Exception) -> JSONResponse:
    refused = refusal(error)
    return answer(request, refused.code, refused.detail, faults=refused.faults, headers=refused.headers)


def refusal(error: Exception) -> RequestRefused:
    """The problem for an expected error: one of Imprint's, of a request, or of a database that does not answer."""
    if isinstance(error, RequestRefused):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid_request(error)
    if isinstance(error, HTTPException):
        code = _OF_STATUS.get(error.status_code, "bad_request" if error.status_code < 500 else "internal")
        detail = "there is nothing at this address" if code == "not_found" else PROBLEMS[code][1].lower()
        return RequestRefused(code, detail, error.headers)
    if isinstance(error, ImprintError):
        return _imprint_error(error)
    log.warning("the database does not answer (%s)", type(error).__name__)
    return RequestRefused(
        "unavailable", "the database does not answer; try again in a few seconds", {"Retry-After": str(_RETRY_AFTER_S)}
    )


def _invalid_request(error: RequestValidationError) -> RequestRefused:
    faults = {}
    for fault in error.errors():
        where = [str(part) for part in fault["loc"] if part != "body"] or ["body"]
        name = api_name(".".join(where[1:] if where[0] in ("query", "path", "header") and where[1:] else where))
        faults[name] = (
            "is not JSON" if fault["type"] == "json_invalid" else str(fault["msg"]).removeprefix("Value error, ")
        )
    return RequestRefused("spec_invalid", f"the request has {len(faults)} fault(s)", faults=faults)


def _imprint_error(error: ImprintError) -> RequestRefused:
    for kind, code, detail in _DETAILS:
        if isinstance(error, kind):
            faults = error.faults if isinstance(error, SpecInvalid) else {}
            named = {api_name(name): _with_api_names(fault) for name, fault in faults.items()}
            retry = {"Retry-After": str(_RETRY_AFTER_S)} if code in ("unavailable", "rate_limited") else None
            return RequestRefused(code, detail or error.message, retry, named)
    log.error("no problem is defined for the error %s: %s", error.code, error)
    return RequestRefused("internal", INTERNAL_DETAIL)
