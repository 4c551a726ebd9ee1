"""Captions that are longer than a family's text encoder reads: the trigger word is read, and the owner is told."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.families import LOCAL
from training import families
from training.backends.captions import fit_captions
from training.backends.local import train
from training.families.family import Base, Where
from training.families.registry import FAMILIES
from training.ports import Example, TrainRun
from training.spec import TrainSpec

SCENE = "a very detailed description of a scene with trees and hills and clouds, "


def load(bases: Callable[..., Path], family: str) -> Base:
    return families.find(family).load(Where(bases(family), torch.device("cpu"), torch.float32))


def examples(*captions: str) -> list[Example]:
    return [Example(Path(), caption, "", 64, 64, label=f"dog{at}.png") for at, caption in enumerate(captions)]


# A scene so often that the caption is longer than what the family reads.
REPEATS = [(name, FAMILIES[name].caption_tokens // 9) for name in LOCAL]


@pytest.mark.parametrize(("family", "repeats"), REPEATS)
def test_the_trigger_word_is_read(bases: Callable[..., Path], family: str, repeats: int) -> None:
    found, base = families.find(family), load(bases, family)
    spec = TrainSpec(base_model="x", family=family, trigger_word="sks dog", seed=0)  # type: ignore[call-arg, arg-type]
    short, last, first = "sks dog on grass", SCENE * repeats + "and sks dog", "Sks Dog, " + SCENE * repeats
    within = SCENE + "and sks dog, " + SCENE * repeats if repeats > 8 else "trees and sks dog, " + SCENE * repeats
    fitted, notes = fit_captions(found, base, spec, examples(short, last, first, within))
    assert [one.caption for one in fitted] == [short, f"sks dog, {last}", first, within]
    assert [note.partition(":")[0] for note in notes] == ["dog1.png", "dog2.png", "dog3.png"]
    assert [note.endswith("so the trigger word was put in front") for note in notes] == [True, False, False]
    assert all("its caption is longer than the text encoder reads; not read: " in note for note in notes)


@pytest.mark.parametrize(("family", "repeats"), REPEATS)
def test_what_is_said_to_be_not_read_changes_no_encoding(bases: Callable[..., Path], family: str, repeats: int) -> None:
    found, base = families.find(family), load(bases, family)
    spec = TrainSpec(base_model="x", family=family, trigger_word="sks dog", seed=0)  # type: ignore[call-arg, arg-type]
    [one], [note] = fit_captions(found, base, spec, examples(SCENE * repeats + "and sks dog"))
    assert 'not read: "' in note
    cut = note.partition('not read: "')[2][:20]
    kept = one.caption[: one.caption.rindex(cut)] if one.caption.count(cut) == 1 else one.caption
    whole, prefix, other = found.encode_captions(
        base, [one, replace(one, caption=kept), replace(one, caption=one.caption.replace("sks dog, ", "", 1))]
    )
    assert all(torch.equal(whole[name], prefix[name]) for name in whole)
    assert not torch.equal(whole["context"], other["context"])


def test_a_training_tells_its_caller(runs: Callable[..., TrainRun]) -> None:
    run, content = runs(max_steps=1), list[str]()
    long = replace(run.examples[1], caption=SCENE * 8 + "and sks dog", label="picture 2 (dog1.png)")
    train(replace(run, examples=[run.examples[0], long, *run.examples[2:]], note=content.append))
    [note] = content
    assert note.startswith("picture 2 (dog1.png): its caption is longer than the text encoder reads")
