"""The recipe: what each family says where a request is silent, what is refused, and how many steps it comes to."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from training.data.dataset import caption_for
from training.families.registry import BASE_MODELS, FAMILIES
from training.options import parse_assignments
from training.spec import STORED, TrainSpec, is_distilled


def spec(**given_: Any) -> TrainSpec:
    return TrainSpec.model_validate({"base_model": "sd15", "trigger_word": "sks", "seed": 1, **given_})


@pytest.mark.parametrize(
    ("base_model", "family", "rank", "alpha", "resolution"),
    [
        ("sd15", "sd15", 4, 32.0, 512),
        ("sdxl", "sdxl", 8, 16.0, 1024),
        ("z-image-turbo", "z-image", 16, 16.0, 1024),
        ("z-image", "z-image", 16, 16.0, 1024),
    ],
)
def test_a_silent_request_gets_its_familys_recipe(
    base_model: str, family: str, rank: int, alpha: float, resolution: int
) -> None:
    made = spec(base_model=base_model)
    assert (made.family, made.rank, made.alpha, made.resolution) == (family, rank, alpha, resolution)
    usual = (1.0, "prodigy") if family == "z-image" else (1e-4, "adamw")
    assert (made.learning_rate, made.optimizer) == usual
    assert (made.epochs, made.batch_size) == (100, 1)
    assert made.max_steps is None
    assert not made.aspect_buckets


@pytest.mark.parametrize(
    ("given", "optimizer", "rate"),
    [
        ({}, "prodigy", 1.0),
        ({"learning_rate": 2e-4}, "adamw", 2e-4),  # as before Prodigy was the default
        ({"optimizer": "adamw8bit"}, "adamw8bit", 1e-4),
        ({"optimization": {"loraplus_ratio": 4}}, "adamw", 1e-4),
        ({"learning_rate": 0.5}, "prodigy", 0.5),
    ],
)
def test_a_request_for_adamw_gets_it_where_prodigy_is_the_default(
    given: dict[str, Any], optimizer: str, rate: float
) -> None:
    made = spec(base_model="z-image", **given)
    assert (made.optimizer, made.learning_rate) == (optimizer, rate)
    assert spec(base_model="qwen-image", optimizer="adamw8bit").learning_rate == 5e-5
    assert spec(optimizer="prodigy").learning_rate == 1.0


def test_several_resolutions_fit_into_the_prepared_pictures() -> None:
    made = spec(base_model="sdxl", data={"resolutions": [512, 768, 1024]})
    assert made.data.resolutions == (512, 768, 1024)
    for wrong in ([512, 1088], [512, 512], [500], [64, 128, 192, 256, 320]):
        with pytest.raises(ValidationError, match="resolutions"):
            spec(base_model="sdxl", data={"resolutions": wrong})


def test_what_is_said_wins_over_the_family_and_none_is_not_said() -> None:
    made = spec(rank=32, alpha=None, resolution=768)
    assert (made.rank, made.alpha, made.resolution) == (32, 32.0, 768)


def test_a_folder_or_hub_id_needs_its_family_and_gets_that_ones_recipe() -> None:
    with pytest.raises(ValidationError, match="for a folder or hub id, set family too"):
        spec(base_model="someone/model")
    made = spec(base_model="someone/model", family="sdxl")
    assert (made.rank, made.resolution) == (8, 1024)


def test_a_named_base_model_of_another_family_is_refused() -> None:
    with pytest.raises(ValidationError, match="is of family sd15"):
        spec(family="sdxl")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("rank", [0, -1, 257, "many", 1.5]),
        ("alpha", [0, -1.0, 1025, float("nan"), float("inf")]),
        ("learning_rate", [0, 1e-8, 0.2, float("nan")]),
        ("batch_size", [0, 65]),
        ("resolution", [0, 63, 100, 2049, 2112]),
        ("epochs", [0, 501]),
        ("max_steps", [0, 100_001]),
        ("seed", [-1, 2**63]),
        ("optimizer", ["sgd"]),
        ("backend", ["cloud"]),
        ("family", ["flux"]),
        ("trigger_word", ["", "   ", "a\nb", "x" * 121]),
        ("class_word", ["a\x00b"]),
        ("base_model", ["", "m" * 301]),
        ("aspect_buckets", ["perhaps"]),
        ("colour", ["red"]),
        ("adapter", ["all", [], {"targets": "everything"}, {"colour": "red"}]),
        ("optimization", [7, {"warmup_steps": -1}, {"ema_decay": 1.0}, {"weight_decay": float("nan")}]),
    ],
)
def test_out_of_range_is_refused(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValidationError):
            spec(**{"base_model": "someone/model", "family": "sd15", **{name: value}})


@pytest.mark.parametrize(
    ("name", "values"),
    [("epochs", [1, 500]), ("rank", [1, 256]), ("resolution", [64, 2048]), ("max_steps", [1, 100_000])],
)
def test_the_ends_of_a_range_belong_to_it(name: str, values: list[Any]) -> None:
    for value in values:
        assert getattr(spec(**{name: value}), name) == value


@pytest.mark.parametrize("word", ["sks  dog", " sks\u00a0dog ", "sks\u3000\u2009dog", "sks dog"])
def test_a_word_has_single_spaces(word: str) -> None:
    made = spec(trigger_word=word, class_word=word)
    assert (made.trigger_word, made.class_word) == ("sks dog", "sks dog")
    assert caption_for(made, "sks dog on grass") == "sks dog on grass"


@pytest.mark.parametrize("word", ["مي\u200cشود", "क्\u200dष", "\U0001f469\u200d\U0001f52c 1", "\U0001f436 rex", "娃娃"])
def test_joiners_belong_to_some_spellings(word: str) -> None:
    assert spec(trigger_word=word).trigger_word == word


@pytest.mark.parametrize("word", [",", "sks\u200bdog", "sks  dog"])
def test_the_words_of_existing_trainings_stay_as_they_are(word: str) -> None:
    """They are in captions and files already, and a later rule must not make a job unreadable."""
    stored = spec().model_dump(mode="json") | {"trigger_word": word}
    assert TrainSpec.model_validate(stored, context=STORED).trigger_word == word


def test_keeping_checkpoints_is_not_part_of_the_recipe() -> None:
    assert spec(checkpoint_every=1, keep_checkpoints=True).to_dict() == spec().to_dict()


def test_an_options_fault_is_named_with_its_group() -> None:
    with pytest.raises(ValidationError) as raised:
        spec(adapter={"targets": "most"}, optimization={"speed": 1})
    assert [fault["loc"] for fault in raised.value.errors()] == [("adapter", "targets"), ("optimization", "speed")]


@pytest.mark.parametrize("base", ["z-image", "flux1", "qwen-image"])
def test_convolutions_are_refused_where_there_are_none(base: str) -> None:
    with pytest.raises(ValidationError, match=rf"targets: {base} has attention and all, not convolutions"):
        spec(base_model=base, adapter={"targets": "convolutions"})


def test_null_is_the_default_of_a_group_and_of_an_option() -> None:
    assert spec(adapter=None, optimization={"schedule": None}) == spec()


def test_a_spec_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        spec().rank = 8  # type: ignore[misc]


@pytest.mark.parametrize(
    ("pictures", "batch_size", "epochs", "max_steps", "steps"),
    [(10, 1, 100, None, 1000), (10, 4, 100, None, 300), (5, 64, 10, None, 10), (10, 1, 100, 7, 7)],
)
def test_steps(pictures: int, batch_size: int, epochs: int, max_steps: int | None, steps: int) -> None:
    assert spec(batch_size=batch_size, epochs=epochs, max_steps=max_steps).steps(pictures) == steps


@given(
    base_model=st.sampled_from(sorted(BASE_MODELS)),
    rank=st.integers(1, 256),
    learning_rate=st.floats(1e-7, 1e-1),
    resolution=st.integers(1, 32).map(lambda count: 64 * count),
    trigger_word=st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=120)
    .map(lambda text: "".join(letter for letter in text if letter not in "\u115f\u1160\u2800\u3164\uffa0"))
    .filter(lambda text: any(map(str.isalnum, text))),
    seed=st.integers(0, 2**63 - 1),
)
def test_a_spec_comes_back_from_its_json(**message: Any) -> None:
    """What the database keeps of a job is exactly what was accepted, also when a family's defaults change later."""
    made = TrainSpec.model_validate(message)
    assert TrainSpec.model_validate_json(made.model_dump_json()) == made
    assert set(FAMILIES[made.family].recipe) <= made.model_dump(exclude_none=True).keys()


@pytest.mark.parametrize(("names", "is_distilled_one"), [
    (("z-image-turbo", "Tongyi-MAI/Z-Image-Turbo"), True),
    (("z-image", "Tongyi-MAI/Z-Image"), False),
    (("z-image-turbo", "ostris/Z-Image-De-Turbo"), False),
    (("mine", "/models/z_image_turbo_bf16.safetensors"), True),
])  # fmt: skip
def test_few_step_models_are_known_by_their_names(names: tuple[str, str], is_distilled_one: bool) -> None:
    assert is_distilled(*names) is is_distilled_one


def test_options_on_a_command_line() -> None:
    given = ["adapter.targets=all", "optimization.ema_decay=0.9", 'validation.previews=["a=b"]', "data.flip=true"]
    assert parse_assignments(given) == {
        "adapter": {"targets": "all"},
        "optimization": {"ema_decay": 0.9},
        "validation": {"previews": ["a=b"]},
        "data": {"flip": True},
    }
    for wrong in ("targets=all", "adapter.targets", "adapter.=all", "all"):
        with pytest.raises(ValueError, match=r"group\.option=value"):
            parse_assignments([wrong])
