"""What the pocket model is shown: the same from the same seed, true captions, and never what must stay new to it."""

from random import Random

from demo.pocket.captions import describe
from demo.pocket.scenes import PocketScene, compose
from demo.pocket.words import CREATURES, KINDS, PLACE_NAMES


def scenes(count: int, seed: int = 1) -> list[PocketScene]:
    random = Random(seed)
    return [compose(random) for _ in range(count)]


def test_the_same_seed_is_the_same_scene_and_the_same_pixels() -> None:
    first, again, other = scenes(12), scenes(12), scenes(12, seed=2)
    assert first == again
    assert [scene.draw().tobytes() for scene in first] == [scene.draw().tobytes() for scene in again]
    assert first != other
    assert all(scene.draw().size == (64, 64) for scene in first)


def test_everything_there_is_comes_up() -> None:
    many = scenes(3000)
    assert {thing.kind for scene in many for thing in scene.things} == set(KINDS)
    assert {scene.place for scene in many} == {*PLACE_NAMES, None}


def test_no_purple_creature_has_horns() -> None:
    creatures = [thing for scene in scenes(6000) for thing in scene.things if thing.kind in CREATURES]
    assert any(thing.colour == "purple" for thing in creatures)
    assert any("horns" in thing.extras for thing in creatures)
    assert not [thing for thing in creatures if thing.colour == "purple" and "horns" in thing.extras]


def test_what_a_caption_says_is_so() -> None:
    random = Random(3)
    named = 0
    for scene in scenes(1500):
        caption = describe(scene, random)
        by_kind = {thing.kind: thing for thing in scene.things}
        for message in caption.things:
            if message.kind is None:
                continue
            thing = by_kind[message.kind]
            assert message.kind in caption.text
            assert message.colour in (None, thing.colour)
            assert message.size in (None, thing.size)
            assert message.extras <= thing.extras
        if caption.relation in ("left", "right") and all(message.kind for message in caption.things):
            one, two = (by_kind[str(message.kind)] for message in caption.things)
            assert (one.x < two.x) == (caption.relation == "left"), caption.text
        if caption.name is not None:
            named += 1
            assert caption.name in caption.text
    assert named > 120


def test_the_name_of_the_demos_mascot_means_nothing_yet() -> None:
    random = Random(4)
    texts = [describe(scene, random).text for scene in scenes(4000)]
    assert not [text for text in texts if {"imp", "sprout", "leaf"} & set(text.split())]
