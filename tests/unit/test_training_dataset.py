"""Captions and manifests."""

import json

import pytest

from training.data.dataset import (
    DatasetPicture,
    Manifest,
    build_manifest,
    caption_for,
    class_caption,
    find_trigger,
    with_early_trigger,
)
from training.spec import TrainSpec


def spec(**given: object) -> TrainSpec:
    return TrainSpec(**{"base_model": "sd15", "trigger_word": "sks dog", "seed": 0, **given})


@pytest.mark.parametrize(
    ("given", "caption"),
    [
        (None, "a photo of sks dog animal"),
        ("", "a photo of sks dog animal"),
        ("  \n ", "a photo of sks dog animal"),
        ("sks dog on a beach", "sks dog on a beach"),
        ("Sks Dog on a beach", "Sks Dog on a beach"),
        ("on  a\nbeach", "sks dog, on a beach"),
        # Not the word: within another one.
        ("asks dogs to run", "sks dog, asks dogs to run"),
    ],
)
def test_every_caption_has_the_trigger_word(given: str | None, caption: str) -> None:
    assert caption_for(spec(class_word="animal"), given) == caption


@pytest.mark.parametrize(
    ("trigger", "given", "has_it"),
    [
        ("猫咪", "一只猫咪在草地上", True),  # Chinese: no spaces between words
        ("猫咪", "一只狗在草地上", False),
        ("sks", "一只sks在草地上", True),
        ("sks", "一只asks在草地上", False),
        ("レックス", "海辺のレックスが走る", True),  # Japanese
        ("เร็กซ์", "ภาพถ่ายเร็กซ์บนหญ้า", True),  # Thai
        ("렉스", "렉스가 잔디 위에 있다", True),  # Korean: endings are attached
        ("рекс", "фото рекса", False),  # Russian has spaces
        ("рекс", "Фото: Рекс, трава", True),
        ("Zoé", "photo of zoe\u0301 on grass", True),  # written as two characters
    ],
)
def test_the_trigger_word_is_found_in_every_script(trigger: str, given: str, has_it: bool) -> None:
    made = caption_for(spec(trigger_word=trigger), given)
    assert made.startswith(f"{trigger}, ") != has_it
    assert find_trigger(spec(trigger_word=trigger), made)


def test_a_class_caption_has_the_class_instead() -> None:
    assert class_caption(spec(trigger_word="猫咪", class_word="猫"), "一只猫咪在草地上") == "一只猫在草地上"
    assert class_caption(spec(trigger_word="sks", class_word="dog"), "photo of sks dog, asks") == "photo of dog, asks"


def test_a_trigger_word_of_odd_letters() -> None:
    odd = spec(trigger_word="(x+y)*")
    assert caption_for(odd, "a (x+y)* at home") == "a (x+y)* at home"
    assert caption_for(odd, "at home") == "(x+y)*, at home"
    assert caption_for(odd, None) == "a photo of (x+y)*"


def test_manifest_goes_there_and_back() -> None:
    made = build_manifest(
        spec(),
        [
            DatasetPicture("a" * 64, 512, 512, "a hat"),
            DatasetPicture("b" * 64, 768, 512),
            DatasetPicture("c" * 64, 512, 512, "sks dog"),
        ],
    )
    assert [example.caption for example in made.examples] == ["sks dog, a hat", "a photo of sks dog", "sks dog"]
    assert made.buckets == {"512x512": 2, "768x512": 1}
    assert Manifest.from_json(made.to_json()) == made
    assert Manifest.from_json(made.to_json().encode()).sha256 == made.sha256
    assert json.loads(made.to_json())["count"] == 3


def test_the_hash_is_of_pictures_captions_and_order_and_of_nothing_else() -> None:
    pictures = [DatasetPicture("a" * 64, 512, 512, "sks dog 1"), DatasetPicture("b" * 64, 512, 512, "sks dog 2")]
    one = build_manifest(spec(), pictures).sha256
    assert one == build_manifest(spec(seed=9, rank=64), pictures).sha256
    assert one != build_manifest(spec(), pictures[::-1]).sha256
    assert one != build_manifest(spec(), [pictures[0], DatasetPicture("b" * 64, 512, 512, "sks dog 3")]).sha256


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"version": 2, "examples": []}', '{"version": 1, "examples": [{"x": 1}]}', "}"]
)
def test_what_is_no_manifest(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's own error is one
        Manifest.from_json(text)


def test_a_remote_trainer_reads_the_trigger_word_of_every_caption() -> None:
    spec = TrainSpec.model_validate({"base_model": "sd15", "trigger_word": "sks", "seed": 0})
    long = "on a beach " * 20
    assert with_early_trigger(spec, f"a photo of sks {long}") == f"a photo of sks {long}"
    assert with_early_trigger(spec, f"{long} sks") == f"sks, {long} sks"
    of_many_tokens = spec.model_copy(update={"family": "z-image"})
    assert with_early_trigger(of_many_tokens, f"{long} sks") == f"{long} sks"
