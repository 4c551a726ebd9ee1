"""The part of a training request that is not the recipe: its fields, and how its faults are named."""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from core.errors import SpecInvalid
from core.names import OwnerName
from core.numbers import NumbersAreNotBools
from core.picture_names import picture_label, plain_name, source_name
from jobs.requests.on_end import OnEnd
from notifications import webhook_payload
from training.spec import MAX_CAPTION_CHARACTERS, MAX_PICTURES, MIN_PICTURES

Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$"),
]


def _is_decoded(name: str) -> str:
    if "\ufffd" in name:  # servers and forms put it in place of bytes that are no UTF-8: different names become one
        raise ValueError("is not UTF-8 text")
    return name


# A subject's id at every door: without blanks around it. A slash is as good as any other character.
SubjectName = Annotated[Name, AfterValidator(_is_decoded)]
# A caption may have several lines; PostgreSQL does not store null characters.
Caption = Annotated[
    str, StringConstraints(strip_whitespace=True, max_length=MAX_CAPTION_CHARACTERS, pattern=r"^[^\x00]*$")
]
Reference = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000, pattern=r"^[^\x00-\x1f\x7f]*$")
]


def _is_free_to_choose(model_id: str) -> str:
    if model_id.startswith("job_"):
        raise ValueError("must not begin with job_, as the ids of jobs do")
    return model_id


def _fits_into_a_notice(reference: dict[str, Any]) -> dict[str, Any]:
    try:
        size = webhook_payload.reference_size(reference)
    except (ValueError, TypeError, RecursionError):
        raise ValueError("must be JSON in Unicode, without NaN and infinity") from None
    if size > webhook_payload.MAX_REFERENCE_BYTES:
        raise ValueError(f"needs {size} bytes as JSON; at most {webhook_payload.MAX_REFERENCE_BYTES} are allowed")
    return reference


# A part of the key of the LoRA file, and of the address of the webhook. Whole numbers are ids too.
ModelId = Annotated[
    str,
    BeforeValidator(lambda given: str(given) if isinstance(given, int) and not isinstance(given, bool) else given),
    StringConstraints(max_length=100, pattern=r"^[a-z0-9_-][a-z0-9._-]*$"),
    AfterValidator(_is_free_to_choose),
]


class RequestedImage(NumbersAreNotBools):
    """One picture of a request: its address or id, its caption, its mask, and a name for messages about it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ref: Reference
    caption: Caption | None = None
    mask: Reference | None = None
    name: Name | None = None


class Envelope(NumbersAreNotBools):
    """The part of a request that is not the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner_id: OwnerName
    subject_id: SubjectName
    model_id: ModelId | None = None
    reference: Annotated[dict[str, Any], AfterValidator(_fits_into_a_notice)] | None = None
    model_link: Annotated[bool, Field(strict=True)] = False
    images: list[RequestedImage] = Field(min_length=MIN_PICTURES, max_length=MAX_PICTURES)
    allow_missing: Annotated[bool, Field(strict=True)] = False
    review: Annotated[bool, Field(strict=True)] = False
    webhook_url: Annotated[str, StringConstraints(max_length=2000)] | None = None
    on_end: OnEnd | None = None
    priority: Literal["low", "normal", "high"] = "normal"
    idempotency_key: (
        Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] | None
    ) = None


@dataclass(frozen=True)
class Origin:
    """What a request came with beside its arguments.

    `message_id` and `style_id`: notices about a message from RabbitMQ repeat its id, and its `style_id` as it was
    written. `notes`: on files beside the pictures that are not used.
    """

    message_id: str | None = None
    style_id: str | int | None = None
    notes: tuple[str, ...] = ()


_SUBJECT_NAME: TypeAdapter[str] = TypeAdapter(SubjectName)
_MAX_UNKNOWN = 10


def unknown_names(given: Iterable[str], known: Container[str]) -> list[str]:
    """The first few unknown names: enough of each to recognise it. The answer is stored, and people read it."""
    return [ascii(name)[1:-1][:60] for name in given if name not in known][:_MAX_UNKNOWN]


def subject_name(subject_id: str) -> str:
    """A subject's id as it is stored. Raises SpecInvalid."""
    try:
        return _SUBJECT_NAME.validate_python(subject_id)
    except ValidationError as error:
        raise SpecInvalid.of({"subject_id": faults_of(error)["base_model"]}) from None


def label_of(position: int, image: RequestedImage) -> str:
    """A picture of a request as every message names it."""
    return picture_label(position, plain_name(image.name) or source_name(image.ref))


def faults_of(error: ValidationError) -> dict[str, str]:
    """Each fault by the place where it is, without the values of the request."""
    # Names of options may be made up, too: see _MAX_UNKNOWN.
    errors = error.errors(include_url=False, include_input=False)
    known = [fault for fault in errors if fault["type"] != "extra_forbidden"]
    unknown = [fault for fault in errors if fault["type"] == "extra_forbidden"][:_MAX_UNKNOWN]
    return {
        ".".join(ascii(str(part))[1:-1][:60] for part in fault["loc"]) or "base_model": (
            fault["msg"].removeprefix("Value error, ")
        )
        for fault in [*known, *unknown]
    }
