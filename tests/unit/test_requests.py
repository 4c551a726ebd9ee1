"""A request: every fault of it at once, the defaults of its family, and the hash that its key is bound to."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import SpecInvalid
from core.outbound.guard import Guard
from core.settings import Settings
from jobs.requests import training_request
from jobs.requests.training_request import TrainingRequest
from storage.objects.local import LocalStore
from storage.sources import Sources
from training.spec import base_model_location

IMAGES = [f"pic_{number}" for number in range(5)]
REQUEST: dict[str, Any] = {
    "owner_id": "ada", "subject_id": "dog", "images": IMAGES, "base_model": "sd15", "trigger_word": "sks"
}  # fmt: skip
FILES = Path("/srv/pictures")
BASES = Path("/srv/bases")
SETTINGS = Settings(
    _env_file=None,
    home=Path("/nowhere/home"),
    file_roots=[FILES],
    base_model_roots=[BASES],
    base_models={"house": "/operator/chose/this", "sd15": "/models/sd15"},
)
# Reading a request looks at nothing outside: no folder here exists, no host is looked up.
SOURCES = Sources(
    guard=Guard(resolve=lambda *_: pytest.fail("looked up")), store=LocalStore(Path("/nowhere")), file_roots=[FILES]
)


def read(**changed: Any) -> TrainingRequest:
    return training_request.parse({**REQUEST, **changed}, SETTINGS, SOURCES)


def faults(**changed: Any) -> dict[str, str]:
    """What is wrong with a request with these changes; an argument that is `...` is left out."""
    arguments = {name: value for name, value in {**REQUEST, **changed}.items() if value is not ...}
    with pytest.raises(SpecInvalid) as caught:
        training_request.parse(arguments, SETTINGS, SOURCES)
    assert all(name in caught.value.message for name in caught.value.faults)
    return caught.value.faults


def test_what_is_not_said_comes_from_the_family() -> None:
    order = read()
    assert (order.spec.family, order.spec.rank, order.spec.alpha, order.spec.epochs) == ("sd15", 4, 32.0, 100)
    assert [image.ref for image in order.envelope.images] == IMAGES
    assert (order.envelope.webhook_url, order.envelope.idempotency_key) == (None, None)


def test_images_come_as_text_or_with_a_caption() -> None:
    images = [*IMAGES[:4], {"ref": "https://pictures.example/1.png?sig=x", "caption": " a dog "}]
    assert read(images=images).envelope.images[4].caption == "a dog"
    assert read(images=images).envelope.images[0].caption is None


MASKED = {"masked": True}


def test_a_mask_comes_beside_its_picture_by_the_same_references() -> None:
    masks = ["pic_9", "https://pictures.example/m.png", (FILES / "m.png").as_uri(), None, "pic_9"]
    images = [{"ref": image, "mask": mask} for image, mask in zip(IMAGES, masks, strict=True)]
    assert [image.mask for image in read(images=images, objective=MASKED).envelope.images] == masks
    assert read(objective=MASKED).envelope.images[0].mask is None


def test_a_mask_without_a_masked_loss_is_a_fault_that_says_what_to_do() -> None:
    images = [*IMAGES[:4], {"ref": "pic_4", "mask": "pic_9"}]
    for objective in ({}, None, {"masked": False}):
        assert faults(images=images, objective=objective) == {
            "objective.masked": "the pictures have masks: set this to true, or leave the masks out"
        }


def test_masks_are_looked_at_as_pictures_are() -> None:
    masks = ["https://10.0.0.1/m.png?sig=hush", "ftp://x/y", "file:///etc/passwd", "s3://bucket/key", "pic_9"]
    images = [{"ref": image, "mask": mask} for image, mask in zip(IMAGES, masks, strict=True)]
    found = faults(images=images, objective=MASKED)
    assert set(found) == {f"images.{index}.mask" for index in range(4)}
    assert "hush" not in str(found)
    plain = faults(images=[mask for mask in masks if mask])
    unlabelled = [[fault.partition(": ")[2] for fault in content.values()] for content in (found, plain)]
    assert unlabelled[0] == unlabelled[1]
    assert found["images.1.mask"].startswith("picture 2: ")
    assert plain["images.0"].startswith("picture 1 (m.png): ")


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/srv/a b.jpg", "write file:///srv/a%20b.jpg for a file on the workers' machine"),
        ("C:\\pictures\\a.jpg", "write file:///C:/pictures/a.jpg for a file"),
        ("a.jpg", "write its whole address, such as file:///folder/name"),
        ("~/a", "write its whole address"),
    ],
)
def test_a_path_is_refused_with_the_address_to_write(path: str, content: str) -> None:
    found = faults(images=[*IMAGES[:4], {"ref": path, "name": "rex 5.jpg"}])
    assert found.keys() == {"images.4"}
    assert found["images.4"].startswith("picture 5 (rex 5.jpg): is a path; write ")
    assert content in found["images.4"]


def test_a_remote_trainer_takes_masks_and_is_refused_what_it_cannot_do_with_them_as_without() -> None:
    images = [*IMAGES[:4], {"ref": "pic_4", "mask": "pic_9"}]
    asked = {"backend": "ai-toolkit", "adapter": {"dora": True}}
    found = faults(images=images, objective=MASKED, **asked)
    assert found == faults(objective=MASKED, **asked)
    assert "objective.masked" not in found
    assert "ai-toolkit does not support this option" in found["adapter.dora"]


def test_every_fault_is_named_at_once() -> None:
    found = faults(
        owner_id="",
        subject_id=...,
        images=["https://10.0.0.1/a.png", "ftp://x/y", "file:///etc/passwd", "s3://bucket/key", ""],
        epochs=0,
        rank=0,
        learning_rate=1,
        resolution=100,
        base_model="someone/model",
        trigger_word=" ",
        webhook_url="gopher://x",
        colour="red",
        size="big",
    )
    assert set(found) >= {
        "owner_id", "subject_id", "epochs", "rank", "learning_rate", "resolution", "trigger_word", "colour", "size",
        "family", "images.4.ref",
    }  # fmt: skip
    assert "for a folder or hub id, set family too" in found["family"]
    assert "the arguments are" in found["colour"]


def test_every_picture_and_the_webhook_are_looked_at_once_the_rest_can_be_read() -> None:
    found = faults(
        images=["https://10.0.0.1/a.png", "ftp://x/y", "file:///etc/passwd", "s3://bucket/key", "pic_1"],
        webhook_url="gopher://x",
        rank=0,
    )
    assert set(found) == {"images.0", "images.1", "images.2", "images.3", "webhook_url", "rank"}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("owner_id", [..., None, "", "  ", 5, "a\nb", "a\x00b", "x" * 201]),
        ("subject_id", [..., "", ["dog"], "x" * 201]),
        ("images", [..., None, "pic_1", {}, [], IMAGES[:4], [f"pic_{n}" for n in range(1001)]]),
        ("images.2", [["a", "b", None, "d", "e"], ["a", "b", 7, "d", "e"], ["a", "b", "x" * 4001, "d", "e"]]),
        ("images.2.ref", [["a", "b", {"caption": "c"}, "d", "e"]]),
        ("images.2.caption", [["a", "b", {"ref": "c", "caption": "x" * 1001}, "d", "e"]]),
        ("images.2.mask", [["a", "b", {"ref": "c", "mask": mask}, "d", "e"] for mask in ("", 5, "m\nm", "x" * 4001)]),
        ("images.2.size", [["a", "b", {"ref": "c", "size": 3}, "d", "e"]]),
        ("webhook_url", ["", "app.example", "ftp://app.example", "https://", "https://u:p@app.example",
                         "https://app.example/?token=x", "https://" + "x" * 2000, "http://[::1", "http://a:b/", 5,
                         "http://127.0.0.1/", "http://169.254.169.254/", "https://app.example:8443/"]),
        ("idempotency_key", ["", "x" * 201, 5]),
        ("base_model", [..., None, "", 5]),
        ("trigger_word", [..., None, "", " ", ",", "\u200b", "\u3164", "sks\u200bdog", "sks\u00addog"]),
        ("class_word", ["dog\ufeff"]),
        ("checkpoint_every", [0, 501, "often"]),
        ("keep_checkpoints", ["perhaps"]),
        ("model_id", ["", "A", "a/b", ".a", "job_1", "a b", "x" * 101, True, 1.5, "é"]),
        ("model_link", ["yes", 1]),
        ("reference", ["x", [], {"x": "y" * 2000}, {"x": float("nan")}, {"x": {1, 2}}, {"x": "\ud800"}]),
        ("family", ["flux"]),
        ("backend", ["cloud"]),
        ("seed", [-1, 2**63]),
        ("max_steps", [0, 100_001]),
        ("epochs", [0, 501]),
        ("aspect_buckets", ["perhaps"]),
        ("allow_missing", ["yes", 1]),
        ("images.2.name", [["a", "b", {"ref": "c", "name": name}, "d", "e"] for name in ("", 5, "a\nb", "x" * 201)]),
    ],
)  # fmt: skip
def test_each_kind_of_fault_is_told_by_its_argument(name: str, values: list[Any]) -> None:
    argument = name.split(".")[0]
    for value in values:
        changed = {argument: value} if argument != "family" else {"family": value, "base_model": "someone/model"}
        found = faults(**changed)
        assert all(f"{content}.".startswith(f"{name}.") for content in found), (value, found)
        assert len(found) == 1, (value, found)


def test_what_a_producer_gives_is_kept() -> None:
    envelope = read(model_id=17, reference={"order": [1, None, "é"]}, allow_missing=True, model_link=True).envelope
    assert (envelope.model_id, envelope.reference) == ("17", {"order": [1, None, "é"]})
    assert (envelope.allow_missing, envelope.model_link) == (True, True)
    assert read(model_id="style_7.v-2").envelope.model_id == "style_7.v-2"
    assert (read().envelope.model_id, read().envelope.reference, read().envelope.allow_missing) == (None, None, False)


def test_a_family_that_does_not_go_with_the_base_model_is_told_beside_other_faults() -> None:
    assert faults(family="sdxl", rank=0).keys() == {"family", "rank"}
    assert faults(base_model="someone/model", family=None, rank=0).keys() == {"family", "rank"}
    assert faults(family=["sd15"]).keys() == {"family"}


def test_a_fault_does_not_repeat_what_may_be_secret() -> None:
    found = faults(
        images=[f"https://10.0.0.1/{n}.png?X-Amz-Signature=hush" for n in range(5)], webhook_url="https://u:hush@h/"
    )
    assert "hush" not in str(found)
    assert len(found) == 6


@pytest.mark.parametrize(
    ("base_model", "accepted"),
    [
        (str(BASES / "mine"), True),
        ("/nowhere/home/bases/tiny", True),
        (str(BASES / ".." / "secrets"), False),
        ("/etc", False),
        ("~/models", False),
        ("../bases", False),
        ("./bases", False),
        (f"{BASES}-not", False),
        ("someone/model", True),
        ("a/b/c", False),
    ],
)
def test_a_folder_is_below_a_root_of_the_operator(base_model: str, accepted: bool) -> None:
    if accepted:
        assert read(base_model=base_model, family="sd15").spec.base_model == base_model
    else:
        assert set(faults(base_model=base_model, family="sd15")) == {"base_model"}


def test_a_link_out_of_the_roots_is_no_way_out(tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "bases" / "link").symlink_to(tmp_path / "elsewhere")
    settings = Settings(_env_file=None, home=tmp_path)
    arguments = {**REQUEST, "base_model": str(tmp_path / "bases" / "link"), "family": "sd15"}
    with pytest.raises(SpecInvalid, match="IMPRINT_BASE_MODEL_ROOTS"):
        training_request.parse(arguments, settings, SOURCES)


def test_the_operator_says_where_a_named_base_model_is() -> None:
    def location(**changed: Any) -> str:
        return base_model_location(read(**changed).spec.base_model, SETTINGS.base_models)

    assert location() == "/models/sd15"
    assert location(base_model="sdxl") == "stabilityai/stable-diffusion-xl-base-1.0"
    assert location(base_model="house", family="sd15") == "/operator/chose/this"
    assert location(base_model="someone/model", family="sdxl") == "someone/model"


def test_a_request_without_a_seed_gets_one_that_is_kept() -> None:
    seeds = {read().spec.seed for _ in range(8)}
    assert len(seeds) > 1
    assert read(seed=7).spec.seed == 7


def test_the_same_request_has_the_same_hash_whatever_seed_it_was_given() -> None:
    assert read().sha256 == read().sha256
    assert read(rank=None).sha256 == read().sha256
    reordered = dict(reversed(REQUEST.items()))
    assert training_request.parse(reordered, SETTINGS, SOURCES).sha256 == read().sha256


@pytest.mark.parametrize(
    "changed",
    [{"rank": 4}, {"seed": 1}, {"trigger_word": "tok"}, {"images": IMAGES[::-1]}, {"webhook_url": "https://a.example"},
     {"images": [*IMAGES[:4], {"ref": "pic_4", "caption": "a dog"}]}, {"objective": {"masked": True}},
     {"images": [*IMAGES[:4], {"ref": "pic_4", "mask": "pic_9"}], "objective": {"masked": True}}],
)  # fmt: skip
def test_another_request_has_another_hash(changed: dict[str, Any]) -> None:
    assert read(**changed).sha256 != read().sha256


TEXT = st.text(st.characters(), max_size=12)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.sampled_from(sorted({*training_request._ENVELOPE, *training_request._RECIPE, "colour"}))


@given(changed=st.dictionaries(ARGUMENTS, ANY, max_size=4))
def test_whatever_comes_is_accepted_or_refused_with_its_faults(changed: dict[str, Any]) -> None:
    """No request, however odd, ends in another error; and none that is accepted has text no database takes."""
    try:
        order = read(**changed)
    except SpecInvalid as error:
        assert error.faults  # noqa: PT017 - either is right
        return
    assert "\\u0000" not in order.envelope.model_dump_json() + order.spec.model_dump_json()


@pytest.mark.parametrize(
    "changed",
    [
        {"images": [*IMAGES[:4], {"ref": "pic_4", "caption": "a\x00dog"}]},
        {"images": [*IMAGES[:4], "pic_\x00"]},
        {"images": [*IMAGES[:4], {"ref": "pic_4", "mask": "pic_\x00"}], "objective": {"masked": True}},
        {"idempotency_key": "k\x00"},
        {"base_model": "some\x00one/model", "family": "sd15"},
        {"base_model": "/srv/bases/\x00", "family": "sd15"},
    ],
)
def test_a_null_character_is_a_fault_for_no_database_keeps_it(changed: dict[str, Any]) -> None:
    assert len(faults(**changed)) == 1


def test_enough_pictures_must_be_left_to_train_on() -> None:
    assert faults(validation={"held_out": 1}) == {
        "validation.held_out": "leaves 4 pictures to train on; a training needs at least 5"
    }
    assert read(images=[*IMAGES, "pic_5"], validation={"held_out": 1}).spec.validation.held_out == 1


def test_early_stop_needs_something_to_go_by() -> None:
    assert "held_out" in faults(validation={"patience": 3})["validation"]
    assert "held_out" in faults(validation={"keep_best": True})["validation"]


def test_the_task_of_the_end_is_the_applications_own() -> None:
    given = {"task": "shop.notice", "queue": "shop", "kwargs": {"order": 7}}
    assert read(on_end=given).envelope.on_end.model_dump() == given  # type: ignore[union-attr]
    assert read(on_end={"task": "shop.notice"}).envelope.on_end.kwargs == {}  # type: ignore[union-attr]
    for wrong, name in (
        ({}, "on_end.task"),
        ({"task": "imprint.cancel"}, "on_end.task"),
        ({"task": "celery.map"}, "on_end.task"),
        ({"task": "two words"}, "on_end.task"),
        ({"task": "x", "queue": "io"}, "on_end.queue"),
        ({"task": "x", "queue": "train.sd15"}, "on_end.queue"),
        ({"task": "x", "kwargs": []}, "on_end.kwargs"),
        ({"task": "x", "kwargs": {"a": "b" * 10_000}}, "on_end.kwargs"),
        ({"task": "x", "args": []}, "on_end.args"),
        ("shop.notice", "on_end"),
    ):
        assert list(faults(on_end=wrong)) == [name]
