"""What a `model_training` message becomes, and why it is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.outbound.guard import Guard
from core.settings import Settings
from storage.objects.local import LocalStore
from storage.sources import Sources
from tasks.rabbitmq.model_training import MAX_BODY_BYTES, MessageRejected, TrainingMessage, parse_message, reference

SETTINGS = Settings(_env_file=None, ingress_owner="house", ingress_paths="https://cdn.example/pictures/")
MESSAGE: dict[str, Any] = {"style_id": 12, "image_paths": ["a/b c%2e.png"], "webhook_url": None, "num_epochs": 20}


SOURCES = Sources(guard=Guard(resolve=lambda *_: pytest.fail("looked up")), store=LocalStore(Path("/nowhere")))


def parsed(message: Any, message_id: str | None = None, **changed: Any) -> TrainingMessage:
    body = message if isinstance(message, bytes) else json.dumps(message | changed).encode()
    found = parse_message(body, message_id, SETTINGS)
    found.check(SETTINGS, SOURCES)
    return found


def read(message: Any, **changed: Any) -> dict[str, Any]:
    return parsed(message, **changed).arguments


def test_a_message_becomes_the_arguments_of_a_training() -> None:
    found = read(MESSAGE)
    assert len(found.pop("idempotency_key")) == len("model_training:sha256:") + 64
    assert found == {
        "subject_id": "12", "images": ["https://cdn.example/pictures/a/b%20c%252e.png"],
        "epochs": 20, "owner_id": "house", "base_model": "sd15", "trigger_word": "style12",
    }  # fmt: skip
    more = read(MESSAGE, owner_id="ada", base_model="sdxl", trigger_word="sks", rank=8, max_steps=5)
    assert (more["owner_id"], more["base_model"], more["trigger_word"], more["rank"]) == ("ada", "sdxl", "sks", 8)
    named = parsed(MESSAGE, "m-1", model_id=17, reference={"order": 4}, checkpoint_every=1, keep_checkpoints=True)
    assert named.arguments["idempotency_key"] == "model_training:m-1"
    assert (named.arguments["model_id"], named.arguments["reference"]) == (17, {"order": 4})
    assert (named.arguments["checkpoint_every"], named.arguments["keep_checkpoints"]) == (1, True)
    assert (named.origin.message_id, named.origin.style_id) == ("m-1", 12)
    assert parsed(MESSAGE, "m" * 201).origin.message_id is None
    assert parsed(MESSAGE, style_id="a b").origin.style_id == "a b"


def test_every_fault_is_named_by_the_fields_of_the_message() -> None:
    with pytest.raises(MessageRejected) as refused:
        read(
            MESSAGE, style_id=None, colour="red", num_epochs=0, rank=0, model_id="a/b",
            image_paths=["../x.png", "a.png", "/etc/passwd"], mask_paths=[None, "../m.png", None],
        )  # fmt: skip
    assert list(refused.value.faults) == [
        "colour", "style_id", "image_paths.0", "mask_paths.1", "image_paths.2", "model_id", "rank", "num_epochs",
    ]  # fmt: skip
    assert refused.value.code == "unknown_field"
    assert all(f"{name}: " in refused.value.full_sentence for name in refused.value.faults)


def test_masks_stand_beside_the_paths_of_their_pictures() -> None:
    paths = ["a.png", "https://cdn.example/b.png", "c.png"]
    found = read(MESSAGE, image_paths=paths, mask_paths=["masks/a.png", "pic_" + "0" * 26, None])
    assert found["images"] == [
        {"ref": "https://cdn.example/pictures/a.png", "mask": "https://cdn.example/pictures/masks/a.png"},
        {"ref": "https://cdn.example/b.png", "mask": "pic_" + "0" * 26},
        "https://cdn.example/pictures/c.png",
    ]
    assert read(MESSAGE, mask_paths=None)["images"] == read(MESSAGE)["images"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed"),
        (b"[]", "malformed"),
        (b"\xff\xfe", "malformed"),
        (b'{"style_id": NaN}', "malformed"),
        (b'{"style_id": 1, "style_id": 2}', "malformed"),
        (b'{"style_id": "\\ud800"}', "malformed"),
        (b"[" * 100_000, "malformed"),
        (b"1" * 10_000, "malformed"),
        (b" " * (MAX_BODY_BYTES + 1), "too_large"),
        ({"price": 0}, "unknown_field"),
        ({"idempotency_key": "x"}, "unknown_field"),
        ({"style_id": None}, "wrong_type"),
        ({"style_id": True}, "wrong_type"),
        ({"image_paths": "a.png"}, "wrong_type"),
        ({"image_paths": [{"ref": "x"}]}, "wrong_type"),
        ({"image_paths": ["../x.png"]}, "path_refused"),
        ({"mask_paths": "m.png"}, "wrong_type"),
        ({"mask_paths": []}, "wrong_type"),
        ({"mask_paths": [7]}, "wrong_type"),
        ({"mask_paths": ["../m.png"]}, "path_refused"),
    ],
)
def test_what_no_attempt_makes_good_is_refused(body: Any, code: str) -> None:
    with pytest.raises(MessageRejected) as refused:
        read(body) if isinstance(body, bytes) else read(MESSAGE, **body)
    assert refused.value.code == code
    assert len(str(refused.value)) < 600
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("path", ["/etc/passwd", "a/../b", "./a", "a//b", "", "a\\b", "a\nb", ".."])
def test_paths_stay_below_their_prefix(path: str) -> None:
    for prefix in ("file:///mnt/pictures", "s3://bucket/pictures", None):
        with pytest.raises(MessageRejected):
            reference(path, prefix)


def test_addresses_and_ids_are_taken_as_they_are() -> None:
    picture = "pic_01m804v1z0c4x9m3w7b2n5k8q6"
    for path in ("https://x.example/a.png", "s3://bucket/a.png", picture):
        assert reference(path, None) == path
    assert reference("a/50%.png", "s3://bucket/in") == "s3://bucket/in/a/50%.png"
