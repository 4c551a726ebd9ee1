"""What the pocket model knows: kinds of things, colours, places, and the words of captions."""

from random import Random

from training.tiny.words import CLIP_MARKS, Merge, byte_letters, learn_merges

Colour = tuple[int, int, int]

# A small world, so that the model draws it clearly after an hour on two cores. The other things of `things` (birds,
# bears, crosses, diamonds, brown and black creatures) are not trained on: benchmarks/quality.py has subjects of them.
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring")
CREATURES = ("cat", "rabbit", "frog", "ghost", "robot")
KINDS = SHAPES + CREATURES
EXTRAS = ("horns", "hat", "scarf")
SIZES = ("small", "big")

COLOURS: dict[str, Colour] = {
    "red": (222, 50, 44),
    "orange": (244, 140, 40),
    "yellow": (248, 216, 60),
    "green": (62, 164, 72),
    "blue": (54, 98, 216),
    "purple": (138, 84, 190),
    "pink": (244, 148, 188),
    "brown": (134, 86, 52),
    "black": (38, 38, 46),
    "white": (246, 244, 240),
    "gray": (142, 146, 152),
}
COLOUR_NAMES = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")  # that pictures are made of

# Where a scene is: a plain or patterned ground of one colour, or a place, with the ways that captions say it.
PATTERNS = ("plain", "striped", "dotted")
PLACES: dict[str, tuple[str, ...]] = {
    "meadow": ("on a meadow", "on grass", "on a flower meadow", "on a green meadow"),
    "night": ("at night", "under the moon", "on a hill at night"),
    "beach": ("on a beach", "by the sea", "on a beach by the sea"),
    "room": ("in a room", "in a bedroom", "in a bed in a room"),
    "library": ("in a library", "in front of a bookshelf", "in front of books"),
    "snow": ("in the snow", "in winter", "on snow"),
    "desert": ("in a desert", "in the desert", "on desert sand"),
    "sunset": ("at sunset", "in front of a sunset", "in the evening"),
    "forest": ("in a forest", "among autumn leaves", "in an autumn forest"),
    "rain": ("in the rain", "on a rainy day", "in heavy rain"),
}
PLACE_NAMES = tuple(PLACES)

MAX_TOKENS = 32

_OTHER_WORDS = """
a an the of in on at with and by for from to is it no , . ! ? ' - photo picture image drawing sketch painting
close up front back side view tiny little large round square tall short long happy sad smiling sitting standing
running jumping sleeping waving holding wearing looking walking reading floating laughing left right top bottom center
middle above below next under over upper lower corner beside between inside around through creature mascot animal
monster character thing shape object like car house tree trees flower flowers sun moon star stars
ball box cup can clock backpack person man woman child face head body arm leg eye eyes tail wing wings ear ears book
books red balloon umbrella stick bed bookshelf snowman light bright pale dark style background ground pattern color
colour stripes dots checks sky grass sand snow water wall floor table street leaves day night winter evening heavy
rainy day hill autumn two one some horned medium cross diamond bear bird checkered leaf
""".split()  # noqa: SIM905 - a list of two hundred quoted words reads worse


def vocabulary() -> tuple[dict[str, int], list[Merge]]:
    """Vocabulary and merges of the tokenizer: every byte, and one token for each word of captions."""
    place_words = [word for ways in PLACES.values() for way in ways for word in way.split()]
    words = [*KINDS, *EXTRAS, *SIZES, *COLOURS, *PATTERNS, *PLACES, *place_words, *_OTHER_WORDS]
    letters = byte_letters()
    merges = learn_merges([[*word[:-1], f"{word[-1]}</w>"] for word in dict.fromkeys(words)])
    made = dict.fromkeys(left + right for left, right in merges)
    entries = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters), *made, *CLIP_MARKS])
    return {entry: index for index, entry in enumerate(entries)}, merges


def nonsense(random: Random) -> str:
    """A meaningless word, like a trigger word: `zorvik`, `sk`, `mobani`, `xq7`."""
    if random.random() < 0.3:
        return "".join(random.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=random.randint(2, 5)))
    syllables = [
        random.choice("bdfghjklmnprstvwxz") + random.choice("aeiou") + random.choice(["", "", "n", "r", "k", "s"])
        for _ in range(random.randint(1, 3))
    ]
    return "".join(syllables)
