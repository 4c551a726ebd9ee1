"""A training request, parsed and validated: all faults of a request are reported together."""

import hashlib
import json
import re
import secrets
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

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
from core.settings import Settings
from jobs.requests.on_end import OnEnd
from notifications import webhook_payload
from storage.sources import Sources
from training.backends.ai_toolkit import config, options
from training.base_recipe import with_recipe_of
from training.families.registry import BASE_MODELS, FAMILIES
from training.spec import MAX_CAPTION_CHARACTERS, MAX_PICTURES, MIN_PICTURES, TrainSpec, base_model_location

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
_CONTROL = r"[\x00-\x1f\x7f]"
_PATH = re.compile(r"[/\\.~:]")  # ids of stored pictures have none of these


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


@dataclass(frozen=True)
class TrainingRequest:
    """A valid request, as `parse` returns it."""

    envelope: Envelope
    spec: TrainSpec
    sha256: str  # of the request as it was sent: the same idempotency key must come with the same hash


_SUBJECT_NAME: TypeAdapter[str] = TypeAdapter(SubjectName)
_MAX_UNKNOWN = 10
_ENVELOPE = frozenset(Envelope.model_fields)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_RECIPE = frozenset(TrainSpec.model_fields)


def parse(arguments: Mapping[str, Any], settings: Settings, sources: Sources) -> TrainingRequest:
    """Check `arguments` of `train_lora`; `images` may hold addresses, ids, or objects as in `RequestedImage`.

    Raises SpecInvalid with every fault at once.
    """
    known = _ENVELOPE | _RECIPE
    faults: dict[str, str] = {
        name: f"unknown argument; the arguments are {', '.join(sorted(known))}"
        for name in unknown_names(arguments, known)
    }
    envelope = spec = None
    given = {name: value for name, value in arguments.items() if name in _ENVELOPE and value is not None}
    if isinstance(given.get("images"), list):
        given["images"] = [{"ref": image} if isinstance(image, str) else image for image in given["images"]]
    try:
        envelope = Envelope.model_validate(given)
    except ValidationError as error:
        faults.update(faults_of(error))
    # The seed is part of the frozen spec, so a request without one gets one now.
    recipe = {"seed": secrets.randbits(48)} | {
        name: value for name, value in arguments.items() if name in _RECIPE and value is not None
    }
    try:
        base_model = recipe.get("base_model")
        if isinstance(base_model, str) and not _base_model_faults(base_model.strip(), settings):
            recipe = with_recipe_of(base_model_location(base_model.strip(), settings.base_models), recipe)
        spec = TrainSpec.model_validate(recipe)
    except SpecInvalid as error:
        faults |= error.faults
    except ValidationError as error:
        faults.update(faults_of(error))
    else:
        if "backend" not in recipe:  # the operator's choice is frozen into the spec, too
            usual = spec.backend if FAMILIES[spec.family].code is not None else "ai-toolkit"
            spec = spec.model_copy(update={"backend": settings.backends.get(spec.family, usual)})
    if envelope is not None:
        faults.update(_address_faults(envelope, sources))
    if envelope is not None and len(envelope.images) > settings.max_pictures:
        faults["images"] = (
            f"has {len(envelope.images)} pictures; this installation accepts {settings.max_pictures} "
            "(IMPRINT_MAX_PICTURES)"
        )
    if spec is not None and envelope is not None:
        left = len(envelope.images) - spec.validation.held_out
        if left < MIN_PICTURES:
            faults["validation.held_out"] = (
                f"leaves {left} pictures to train on; a training needs at least {MIN_PICTURES}"
            )
        if not spec.objective.masked and any(image.mask for image in envelope.images):
            faults["objective.masked"] = "the pictures have masks: set this to true, or leave the masks out"
    if spec is not None:
        faults.update(_base_model_faults(spec.base_model, settings))
        faults.update(_family_faults(spec, settings))
        faults.update(_remote_faults(spec, settings))
        faults.update(_caption_faults(spec, settings))
    if faults or envelope is None or spec is None:
        raise SpecInvalid.of(faults)
    return TrainingRequest(envelope, spec, _sha256(arguments))


def unknown_names(given: Iterable[str], known: Container[str]) -> list[str]:
    """The first few unknown names: enough of each to recognise it. The answer is stored, and people read it."""
    return [ascii(name)[1:-1][:60] for name in given if name not in known][:_MAX_UNKNOWN]


def _family_faults(spec: TrainSpec, settings: Settings) -> dict[str, str]:
    """Families that the operator has switched off, and those that no worker trains."""
    if spec.family in settings.disabled_families:
        return {"family": f"{spec.family} is switched off on this installation"}
    if spec.backend == "local" and FAMILIES[spec.family].code is None:
        return {"backend": f"{spec.family} is trained only on rented GPUs: set backend to ai-toolkit, or leave it out"}
    return {}


def _remote_faults(spec: TrainSpec, settings: Settings) -> dict[str, str]:
    """What a remote server cannot do, found before credits are held."""
    if spec.backend == "local":
        return {}
    faults = options.unsupported_options(spec)
    if settings.ai_toolkit_url is None and settings.runpod_api_key is None:
        faults["backend"] = (
            "no ai-toolkit server is configured: set IMPRINT_AI_TOOLKIT_URL, or IMPRINT_RUNPOD_API_KEY to rent one"
        )
    try:
        config.find_base_model(spec, settings.base_models)
    except SpecInvalid as error:
        faults |= error.faults
    return faults


def _caption_faults(spec: TrainSpec, settings: Settings) -> dict[str, str]:
    """Why this installation has no captions for a request that asks for them."""
    if spec.captions != "auto" or settings.caption_task is not None:
        return {}
    if settings.captioner is None:
        return {
            "captions": "this installation has no captioner: its operator sets IMPRINT_CAPTIONER or "
            "IMPRINT_CAPTION_TASK; or give captions, or set this to template"
        }
    if spec.backend != "local":
        return {
            "captions": "the captioner runs on the training workers of this installation, and this training goes to a "
            "remote server: give captions, or have the operator set IMPRINT_CAPTION_TASK"
        }
    return {}


def _address_faults(envelope: Envelope, sources: Sources) -> dict[str, str]:
    faults = {}
    for index, image in enumerate(envelope.images):
        for name, reference in ((f"images.{index}", image.ref), (f"images.{index}.mask", image.mask)):
            if reference and (reason := _reference_fault(reference, sources)):
                faults[name] = f"{label_of(index, image)}: {reason}"
    if envelope.webhook_url is not None and (reason := webhook_fault(envelope.webhook_url, sources)):
        faults["webhook_url"] = reason
    return faults


def subject_name(subject_id: str) -> str:
    """A subject's id as it is stored. Raises SpecInvalid."""
    try:
        return _SUBJECT_NAME.validate_python(subject_id)
    except ValidationError as error:
        raise SpecInvalid.of({"subject_id": faults_of(error)["base_model"]}) from None


def label_of(position: int, image: RequestedImage) -> str:
    """A picture of a request as every message names it."""
    return picture_label(position, plain_name(image.name) or source_name(image.ref))


def is_path(reference: str) -> bool:
    """Whether a reference that is no address is a path, and not the id of a stored picture."""
    return _PATH.search(reference) is not None


def _reference_fault(reference: str, sources: Sources) -> str | None:
    if "://" in reference:
        return sources.refusal_reason(reference)
    if not is_path(reference):
        return None  # an id; whether the owner has such a picture is checked with the database
    for path in (PurePosixPath(reference), PureWindowsPath(reference)):
        if path.is_absolute():
            return f"is a path; write {path.as_uri()[:200]} for a file on the workers' machine"
    return "is a path; write its whole address, such as file:///folder/name for a file on the workers' machine"


def webhook_fault(url: str, sources: Sources) -> str | None:
    """Why a webhook address is refused, or None. Webhooks use the same guard as downloads of pictures."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "is not a valid address"
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        return "must be an http(s) address without user info and query"
    return sources.refusal_reason(url)


def _base_model_faults(base_model: str, settings: Settings) -> dict[str, str]:
    """A request may name a folder, but only below the folders that the operator allows."""
    if base_model in BASE_MODELS or base_model in settings.base_models:
        return {}
    if re.search(_CONTROL, base_model):
        return {"base_model": "contains a control character"}
    if _HUB_ID.fullmatch(base_model):
        return {}
    roots = [*settings.base_model_roots, settings.home / "bases"]
    folder = Path(base_model).resolve()
    if any(folder.is_relative_to(root.resolve()) for root in roots):
        return {}
    return {"base_model": "is neither a hub id (name/name) nor a folder below one of IMPRINT_BASE_MODEL_ROOTS"}


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


def _sha256(arguments: Mapping[str, Any]) -> str:
    asked = {name: value for name, value in arguments.items() if value is not None}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()
