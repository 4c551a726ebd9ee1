"""Captions of scenes: several phrasings, which may omit any part, and the parts that they mention."""

from dataclasses import dataclass
from random import Random

from demo.pocket.scenes import PocketScene, Thing
from demo.pocket.words import PLACES, nonsense

_SIZE_WORDS = {"small": ("small", "small", "little"), "big": ("big", "big", "large")}
_BEGINNINGS = ("", "", "", "a picture of ", "a photo of ", "a drawing of ")
# Words without effect on the drawing, so that the model knows them.
_DOING = ("sitting", "standing", "waving", "walking", "jumping", "sleeping", "laughing", "smiling", "running",
          "looking left", "looking right", "looking up", "reading a book", "holding a stick", "under an umbrella",
          "floating", "with a balloon")  # fmt: skip
_EXTRAS = {
    "horns": ("with horns", "with two horns"),
    "hat": ("with a hat", "wearing a hat"),
    "scarf": ("with a scarf", "wearing a scarf"),
}
_NAMELESS = ("creature", "animal", "mascot", "character", "monster", "mascot")


@dataclass(frozen=True)
class ThingDescription:
    """What a caption mentions of one thing; None for what it omits."""

    kind: str | None = None
    colour: str | None = None
    size: str | None = None
    column: str | None = None  # left, center, right
    row: str | None = None  # top, center, bottom
    extras: frozenset[str] = frozenset()


@dataclass(frozen=True)
class SceneCaption:
    """A caption and its content: what it mentions of each thing, in its order, and of the place."""

    text: str
    things: tuple[ThingDescription, ...] = ()
    relation: str | None = None  # of the first thing to the second: left, right, above, below
    place: str | None = None
    pattern: str | None = None
    ground: str | None = None
    name: str | None = None  # a word without meaning


def describe(scene: PocketScene, random: Random) -> SceneCaption:
    """A random caption of a scene. One in eight has a meaningless word, like a trigger word."""
    things = list(scene.things)
    random.shuffle(things)
    if not things:
        text, place, pattern, ground = _ground_text(scene, random)
        return SceneCaption(f"{random.choice(_BEGINNINGS)}{random.choice(['', 'a place '])}{text}", (), None, place)
    name = nonsense(random) if random.random() < 0.12 else None
    texts, descriptions = [], []
    for number, thing in enumerate(things):
        text, parts = _thing_text(thing, random, name if number == 0 else None, alone=len(things) == 1)
        texts.append(text)
        descriptions.append(parts)
    relation = None
    text = random.choice(_BEGINNINGS) + texts[0]
    if len(things) == 2:
        between, relation = _relation(things[0], things[1], random)
        text += f" {between} {texts[1]}"
    place = pattern = ground = None
    if random.random() < 0.93:
        where, place, pattern, ground = _ground_text(scene, random)
        text += ("" if random.random() < 0.8 else ",") + f" {where}"
    return SceneCaption(text, tuple(descriptions), relation, place, pattern, ground, name)


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _thing_text(thing: Thing, random: Random, name: str | None, *, alone: bool) -> tuple[str, ThingDescription]:
    """`a big red circle on the left`, `a small yellow cat-like creature with horns`, `mobani mascot`."""
    unnamed = name is not None and thing.is_creature and random.random() < 0.7
    says_colour = random.random() < (0.3 if unnamed else 0.96)
    says_size = random.random() < (0.3 if unnamed else 0.7)
    words = [random.choice(_SIZE_WORDS[thing.size])] if says_size else []
    words += [thing.colour] if says_colour else []
    kind: str | None = thing.kind
    if unnamed:
        kind = None
        words += [name or "", *([random.choice(_NAMELESS)] if random.random() < 0.7 else [])]
    else:
        words += [name] if name else []
        like = thing.is_creature and random.random() < 0.12
        words += [f"{thing.kind}-like", "creature"] if like else [thing.kind]
    text = " ".join(words)
    text = text if unnamed and random.random() < 0.6 else _article(text)
    worn = frozenset(extra for extra in thing.extras if random.random() < (0.4 if unnamed else 0.95))
    if worn:
        text += " " + " and ".join(random.choice(_EXTRAS[extra]) for extra in sorted(worn))
    if thing.is_creature and random.random() < 0.12:
        text += f" {random.choice(_DOING)}"
    column = row = None
    if alone and random.random() < 0.75:
        column, row = _third(thing.x, "left", "right"), _third(thing.y, "top", "bottom")
        if thing.is_creature:
            row = None
        text += f" {_place_text(column, row, random)}"
    return text, ThingDescription(
        kind, thing.colour if says_colour else None, thing.size if says_size else None, column, row, worn
    )


def _third(share: float, low: str, high: str) -> str:
    return low if share < 0.41 else high if share > 0.59 else "center"


def _place_text(column: str, row: str | None, random: Random) -> str:
    if column == "center" and row in ("center", None):
        return random.choice(["in the middle", "in the center"])
    if row in ("center", None):
        return f"on the {column}" + random.choice(["", " side"])
    if column == "center":
        return f"at the {row}"
    return f"at the {row} {column}" if random.random() < 0.7 else f"in the {row} {column} corner"


def _relation(one: Thing, two: Thing, random: Random) -> tuple[str, str | None]:
    if random.random() < 0.12:
        return random.choice(["and", "beside", "with"]), None
    if abs(one.x - two.x) >= abs(one.y - two.y):
        relation = "left" if one.x < two.x else "right"
        return random.choice([f"{relation} of", f"to the {relation} of"]), relation
    relation = "above" if one.y < two.y else "below"
    return random.choice([relation, {"above": "over", "below": "under"}[relation]]), relation


def _ground_text(scene: PocketScene, random: Random) -> tuple[str, str | None, str | None, str | None]:
    if scene.place is not None:
        return random.choice(PLACES[scene.place]), scene.place, None, None
    words = scene.ground if scene.pattern == "plain" else f"{scene.pattern} {scene.ground}"
    return f"on {_article(str(words))} background", None, scene.pattern, scene.ground
