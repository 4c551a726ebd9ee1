"""Parses messages from producers without Celery, JSON, into the arguments of a training.

style_id        subject_id        text or a whole number
image_paths     images            addresses, ids of stored pictures, or paths below IMPRINT_INGRESS_PATHS
mask_paths      their masks       the same, or null, one for each of image_paths
num_epochs      epochs
owner_id        owner_id          default: IMPRINT_INGRESS_OWNER
base_model      base_model        default: sd15
trigger_word    trigger_word      default: `style` and the letters and digits of style_id
the rest of the request (webhook_url, model_id, reference, class_word, rank, max_steps, seed …) has the same names
message_id      idempotency_key   a property of the message; default: the hash of the body
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from core.errors import SpecInvalid
from core.settings import Settings
from jobs.requests import training_request
from jobs.requests.envelope import Envelope, Origin
from storage.sources import Sources
from training.spec import TrainSpec

MAX_BODY_BYTES = 1 << 20  # a hundred pictures and masks with very long addresses need less
_OWN = {"style_id": "subject_id", "image_paths": "images", "mask_paths": "images", "num_epochs": "epochs"}
_SAME = tuple(
    name
    for name in (*Envelope.model_fields, *TrainSpec.model_fields)
    if name not in (*_OWN.values(), "idempotency_key")
)
_KNOWN = sorted({*_OWN, *_SAME})
_PICTURE = re.compile(r"pic_[0-9a-z]{26}")
_MAX_SENTENCE = 500
_MAX_UNKNOWN = 10


class MessageRejected(Exception):
    """A message that cannot become a job: `code` for programs, `faults` by field for people, none with a secret."""

    def __init__(self, code: str, sentence: str, faults: Mapping[str, str] | None = None) -> None:
        super().__init__(code, sentence)
        self.code = code
        self.full_sentence = sentence
        self.sentence = "".join(letter if " " <= letter <= "~" else "?" for letter in sentence)[:_MAX_SENTENCE]
        self.faults = dict(faults or {})

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}"


@dataclass(frozen=True)
class TrainingMessage:
    """A message in the terms of a training. Values with a fault are not among the arguments."""

    arguments: dict[str, Any]
    origin: Origin
    faults: dict[str, tuple[str, str]]  # code and sentence by field of the message, in the order of their checks

    def check(self, settings: Settings, sources: Sources) -> None:
        """Raises MessageRejected with every fault, those of its values too, if the message has one of its own."""
        if not self.faults:
            return
        faults = {name: sentence for name, (_, sentence) in self.faults.items()}
        named = {name.partition(".")[0] for name in faults}
        try:
            training_request.parse(self.arguments, settings, sources)
        except SpecInvalid as error:
            more = in_message_terms(error.faults)
            faults |= {name: fault for name, fault in more.items() if name not in named}  # not again as missing
        code = next(iter(self.faults.values()))[0]
        # The sentence may be cut in logs and headers: long faults, which list all known fields, come last.
        shortest_first = sorted(faults.items(), key=lambda fault: len(fault[1]))
        raise MessageRejected(code, "; ".join(f"{name}: {fault}" for name, fault in shortest_first), faults)


def parse_message(body: bytes, message_id: str | None, settings: Settings) -> TrainingMessage:
    """The arguments of `jobs.service.submit` for a message; `submit` checks their values.

    Raises MessageRejected for a body that is no JSON object.
    """
    message = _read(body)
    unknown = [name for name in message if name not in _KNOWN][:_MAX_UNKNOWN]
    faults = {
        ascii(name)[1:-1][:60]: ("unknown_field", f"unknown field; known fields are {', '.join(_KNOWN)}")
        for name in unknown
    }
    arguments = {name: message[name] for name in _SAME if message.get(name) is not None}
    arguments |= {"base_model": "sd15"} if "base_model" not in arguments else {}
    style = message.get("style_id")
    if isinstance(style, bool) or not isinstance(style, str | int) or not str(style).strip():
        faults["style_id"] = "wrong_type", "must be a text or a whole number"
        style = None
    else:
        arguments["subject_id"] = str(style)
    arguments.setdefault("trigger_word", f"style{re.sub(r'[^A-Za-z0-9]', '', str(style or ''))[:40]}")
    images, picture_faults = _images(message, settings.ingress_paths)
    faults |= picture_faults
    arguments |= {"images": images} if images is not None else {}
    if "owner_id" not in arguments and settings.ingress_owner is None:
        faults["owner_id"] = "no_owner", "the message has none, and IMPRINT_INGRESS_OWNER is not set"
    else:
        arguments.setdefault("owner_id", settings.ingress_owner)
    if message.get("num_epochs") is not None:
        arguments["epochs"] = message["num_epochs"]
    arguments["idempotency_key"] = key_of(body, message_id)
    is_short = message_id is not None and len(message_id) <= 200 and message_id.isprintable()
    return TrainingMessage(arguments, Origin(message_id if is_short else None, style), faults)


def in_message_terms(faults: Mapping[str, str]) -> dict[str, str]:
    """Faults of arguments by the fields of a message: `images.3.mask` is `mask_paths.3`."""
    found = {}
    names = {argument: field for field, argument in _OWN.items() if field != "mask_paths"}
    for name, fault in faults.items():
        first, _, rest = name.partition(".")
        field = names.get(first, first)
        if first == "images" and rest.endswith(".mask"):
            field, rest = "mask_paths", rest.removesuffix(".mask")
        found[f"{field}.{rest.removesuffix('.ref')}" if rest else field] = fault
    return found


def _images(
    message: Mapping[str, Any], prefix: str | None
) -> tuple[list[str | dict[str, str]] | None, dict[str, tuple[str, str]]]:
    """The entries of `images`, or None if they cannot be read; and faults by field."""
    paths, masks = message.get("image_paths"), message.get("mask_paths")
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        return None, {"image_paths": ("wrong_type", "must be a list of texts")}
    if masks is not None and not _go_with(masks, paths):
        return None, {"mask_paths": ("wrong_type", "must be a list of texts and nulls, one for each of image_paths")}
    images: list[str | dict[str, str]] = []
    faults = {}
    for index, (path, mask) in enumerate(zip(paths, masks or [None] * len(paths), strict=True)):
        found = []
        for field, named in (("image_paths", path), ("mask_paths", mask)):
            try:
                found.append(None if named is None else reference(named, prefix))
            except MessageRejected as error:
                faults[f"{field}.{index}"] = error.code, error.sentence
        if len(found) == 2 and found[0] is not None:
            images.append(found[0] if found[1] is None else {"ref": found[0], "mask": found[1]})
    return (None if faults else images), faults


def _go_with(masks: Any, paths: list[str]) -> bool:
    return (
        isinstance(masks, list)
        and len(masks) == len(paths)
        and all(mask is None or isinstance(mask, str) for mask in masks)
    )


def key_of(body: bytes, message_id: str | None) -> str:
    """The idempotency key of a message. The same message twice has the same key, so it becomes one job."""
    if message_id and len(message_id) <= 150 and message_id.isprintable() and message_id.isascii():
        return f"model_training:{message_id}"
    return f"model_training:sha256:{hashlib.sha256(body).hexdigest()}"


def reference(path: str, prefix: str | None) -> str:
    """The entry of `images` for a path. Addresses and ids stay, paths get the prefix. Raises MessageRejected."""
    if "://" in path or _PICTURE.fullmatch(path):
        return path
    if prefix is None:
        raise MessageRejected("path_refused", "is a path, and IMPRINT_INGRESS_PATHS is not set")
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or not path.isprintable() or "\\" in path:
        raise MessageRejected("path_refused", "is not a plain relative path")
    # S3 keys are used as they are. In other addresses, % and ? in a name must be quoted.
    return f"{prefix.rstrip('/')}/{path if prefix.startswith('s3://') else quote(path)}"


def _read(body: bytes) -> Mapping[str, Any]:
    if len(body) > MAX_BODY_BYTES:
        raise MessageRejected("too_large", f"the body has {len(body)} bytes; at most {MAX_BODY_BYTES} are allowed")
    try:
        message = json.loads(body.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
        json.dumps(message, ensure_ascii=False).encode()  # fails for half of a surrogate pair
    except (ValueError, RecursionError):  # also invalid UTF-8 and endless numbers
        raise MessageRejected("malformed", "the body is not JSON") from None
    if not isinstance(message, dict):
        raise MessageRejected("malformed", "the body is not a JSON object")
    return message


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate name")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
