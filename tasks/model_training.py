"""Parses `model_training` messages, JSON from producers without Celery, into the arguments of a training.

style_id        subject_id        text or a whole number
image_paths     images            addresses, ids of stored pictures, or paths below IMPRINT_INGRESS_PATHS
mask_paths      their masks       the same, or null, one for each of image_paths
num_epochs      epochs
webhook_url     webhook_url
owner_id        owner_id          default: IMPRINT_INGRESS_OWNER
base_model      base_model        default: sd15
trigger_word    trigger_word      default: `style` and the letters and digits of style_id
the rest of the recipe (class_word, rank, learning_rate, max_steps, seed …) has the same names
message_id      idempotency_key   a property of the message; default: the hash of the body
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from core.settings import Settings
from training.spec import TrainSpec

MAX_BODY_BYTES = 1 << 20  # a hundred pictures and masks with very long addresses need less
_OWN = ("style_id", "image_paths", "mask_paths", "num_epochs", "webhook_url", "owner_id")
_SAME = tuple(name for name in TrainSpec.model_fields if name != "epochs")
_PICTURE = re.compile(r"pic_[0-9a-z]{26}")
_MAX_SENTENCE = 500


class MessageRejected(Exception):
    """A message that cannot become a job: `code` for programs, `sentence` for people, neither with a secret."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(code, sentence)
        self.code = code
        self.sentence = "".join(letter if " " <= letter <= "~" else "?" for letter in sentence)[:_MAX_SENTENCE]

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}"


def arguments_of(body: bytes, message_id: str | None, settings: Settings) -> dict[str, Any]:
    """The arguments of `jobs.service.submit` for a message; `submit` checks their values. Raises MessageRejected."""
    message = _read(body)
    known = {*_OWN, *_SAME}
    if unknown := [name for name in message if name not in known]:
        raise MessageRejected(
            "unknown_field", f"unknown field {ascii(unknown[0])[:60]}; known fields are {', '.join(sorted(known))}"
        )
    style = message.get("style_id")
    if isinstance(style, bool) or not isinstance(style, str | int) or not str(style).strip():
        raise MessageRejected("wrong_type", "style_id must be a text or a whole number")
    paths = message.get("image_paths")
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise MessageRejected("wrong_type", "image_paths must be a list of texts")
    masks = message.get("mask_paths")
    if masks is not None and not _go_with(masks, paths):
        raise MessageRejected("wrong_type", "mask_paths must be a list of texts and nulls, one for each of image_paths")
    owner = message.get("owner_id") or settings.ingress_owner
    if owner is None:
        raise MessageRejected("no_owner", "the message has no owner_id, and IMPRINT_INGRESS_OWNER is not set")
    arguments = {name: message[name] for name in _SAME if name in message}
    arguments.setdefault("base_model", "sd15")
    arguments.setdefault("trigger_word", f"style{re.sub(r'[^A-Za-z0-9]', '', str(style))[:40]}")
    if message.get("num_epochs") is not None:
        arguments["epochs"] = message["num_epochs"]
    return arguments | {
        "owner_id": owner,
        "subject_id": str(style),
        "images": [
            _image(path, mask, settings.ingress_paths)
            for path, mask in zip(paths, masks or [None] * len(paths), strict=True)
        ],
        "webhook_url": message.get("webhook_url"),
        "idempotency_key": key_of(body, message_id),
    }


def _go_with(masks: Any, paths: list[str]) -> bool:
    return (
        isinstance(masks, list)
        and len(masks) == len(paths)
        and all(mask is None or isinstance(mask, str) for mask in masks)
    )


def _image(path: str, mask: str | None, prefix: str | None) -> str | dict[str, str]:
    """An entry of `images`."""
    found = reference(path, prefix)
    return found if mask is None else {"ref": found, "mask": reference(mask, prefix)}


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
        raise MessageRejected("path_refused", "the message has a path, and IMPRINT_INGRESS_PATHS is not set")
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or not path.isprintable() or "\\" in path:
        raise MessageRejected("path_refused", "the message has a path that is not a plain relative path")
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
