"""Parameters of the API and of the page. They refuse only what no name can be; the services check the rest."""

from typing import Annotated

from fastapi import Form, Header, Path
from pydantic import AfterValidator

from core.errors import SpecInvalid
from jobs.requests.envelope import subject_name

# `request_middleware` puts it in place of a slash inside a segment (`%2F`). No text has this character.
SLASH = "\ufdd0"


def _subject(segment: str) -> str:
    try:
        return subject_name(segment.replace(SLASH, "/"))
    except SpecInvalid as error:
        raise ValueError(error.faults["subject_id"]) from None


SubjectId = Annotated[
    str,
    Path(alias="id", min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$", description="The subject's id."),
    AfterValidator(_subject),
]
PictureId = Annotated[str, Path(alias="imageId", min_length=1, max_length=100, pattern=r"^[a-z0-9_]+$")]
FetchId = Annotated[str, Path(alias="fetchId", min_length=1, max_length=100, pattern=r"^[a-z0-9_]+$")]
TrainingId = Annotated[str, Path(alias="id", min_length=1, max_length=100, pattern=r"^[a-z0-9_]+$")]
DrawingId = Annotated[str, Path(alias="drawingId", min_length=1, max_length=100, pattern=r"^[a-z0-9_]+$")]
DrawnNumber = Annotated[int, Path(alias="number", ge=0, lt=1000)]
PreviewName = Annotated[str, Path(alias="name", max_length=100)]
PictureHash = Annotated[str, Path(alias="sha256", pattern=r"^[0-9a-f]{64}$")]
TokenId = Annotated[str, Path(alias="tokenId", min_length=1, max_length=100, pattern=r"^[a-z0-9_]+$")]
# Also of an owner whose name no request can have: operators see those too.
OwnerPath = Annotated[
    str,
    Path(alias="owner", min_length=1, max_length=300),
    AfterValidator(lambda segment: segment.replace(SLASH, "/")),
]
DeletionId = Annotated[str, Path(alias="deletionId", min_length=1, max_length=100, pattern=r"^[a-z0-9_]+$")]
SessionId = Annotated[str, Path(alias="sessionId", min_length=1, max_length=100, pattern=r"^[a-z0-9_]+$")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="idempotency-key",
        min_length=1,
        max_length=180,
        pattern=r"^[\x21-\x7e]+$",
        description="The same key with the same request starts once, and returns the same training or drawing.",
    ),
]
# A form that starts something has a key of its own: sent twice, it starts once.
FormKey = Annotated[str, Form(alias="key", pattern=r"^[0-9a-f]{32}$")]


def api_key(key: str | None) -> str | None:
    """The idempotency key of a request to the API. Keys of the API, of the page and of tasks are kept apart."""
    return None if key is None else f"http:{key}"


def page_key(key: str) -> str:
    """The idempotency key of a form of the page."""
    return f"http:page:{key}"
