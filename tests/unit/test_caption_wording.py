"""Captions leave out what the LoRA should learn, and always have the trigger word."""

from typing import Any

import pytest

from training.captioning import wording
from training.captioning.instructions import prompt_for
from training.data.dataset import DatasetPicture, build_manifest
from training.spec import MAX_CAPTION_CHARACTERS, TrainSpec


def spec(**changed: Any) -> TrainSpec:
    return TrainSpec.model_validate({"base_model": "sd15", "trigger_word": "sks", "seed": 0, **changed})


@pytest.mark.parametrize(
    ("class_word", "learns", "told"),
    [
        ("", None, "character"),
        ("young woman", None, "character"),
        ("dog", None, "object"),
        ("watercolour style", None, "style"),
        ("dog", "character", "character"),
    ],
)
def test_what_is_learnt_is_told_by_the_class_word(class_word: str, learns: str | None, told: str) -> None:
    assert spec(class_word=class_word, learns=learns).learnt == told


@pytest.mark.parametrize(
    ("said", "caption"),
    [
        ("The image shows a small brown dog sitting on a red sofa.", "sks dog sitting on a red sofa"),
        ("a photo of a fluffy white dog, running on a beach", "sks dog, running on a beach"),
        ("In this image we can see a dog and a cat on the grass.", "sks dog and a cat on the grass"),
        ("There is a bowl of berries next to a dog", "a bowl of berries next to sks dog"),
        ("a cat on a table", "sks dog, a cat on a table"),  # it was not recognised
        ("SKS dog on a sofa", "SKS dog on a sofa"),
        ("</s><s>a dog on a bench</s><pad>", "sks dog on a bench"),
    ],
)
def test_an_object_is_named_and_not_described(said: str, caption: str) -> None:
    assert wording.finish(spec(class_word="dog"), said) == caption


@pytest.mark.parametrize(
    ("said", "caption"),
    [
        (
            "a young woman with long red hair and blue eyes wearing a green coat, standing on a bridge",
            "sks woman wearing a green coat, standing on a bridge",
        ),
        ("The picture shows a girl reading a book in a library.", "sks woman reading a book in a library"),
        ("a portrait of a man with a beard and a hat", "sks woman and a hat"),
        ("a woman with a bag in front of a wall", "sks woman with a bag in front of a wall"),
    ],
)
def test_a_person_keeps_the_clothes_and_loses_the_face(said: str, caption: str) -> None:
    assert wording.finish(spec(class_word="woman"), said) == caption


@pytest.mark.parametrize(
    ("said", "caption"),
    [
        ("a watercolor painting of a boat on a lake", "sks style, a boat on a lake"),
        ("The image depicts a city at night in the style of an old comic book.", "sks style, a city at night"),
        ("a black and white photo of two cups on a table", "sks style, two cups on a table"),
        ("a cat on a roof, digital art", "sks style, a cat on a roof"),
    ],
)
def test_a_style_is_left_out_and_the_contents_stay(said: str, caption: str) -> None:
    assert wording.finish(spec(class_word="style"), said) == caption


def test_what_says_nothing_is_no_caption_and_a_long_one_is_cut_behind_a_word() -> None:
    assert wording.finish(spec(), " <s></s>...") is None
    cut = wording.finish(spec(class_word="dog"), "a dog " + "on a sofa " * 200)
    assert cut is not None
    assert len(cut) <= MAX_CAPTION_CHARACTERS
    assert cut.endswith((" on", " a", " sofa"))


def test_the_instruction_says_what_to_leave_out_and_names_the_subject() -> None:
    of_dog = prompt_for(spec(class_word="dog"), "shop.caption")
    assert '"sks dog"' in of_dog.instruction
    assert "Leave out how the thing itself looks" in of_dog.instruction
    assert "no word for the style" in prompt_for(spec(class_word="style"), "shop.caption").instruction
    assert of_dog.sha256 != prompt_for(spec(class_word="dog"), "other.caption").sha256
    assert of_dog.sha256 == prompt_for(spec(class_word="dog", rank=8), "shop.caption").sha256


def test_with_template_given_captions_are_not_used_and_the_recipe_of_files_is_as_before() -> None:
    of_template = build_manifest(spec(class_word="dog", captions="template"), [DatasetPicture("a", 8, 8, "my caption")])
    assert of_template.examples[0].caption == "a photo of sks dog"
    assert spec(captions="auto", learns="style").to_dict() == spec().to_dict()
