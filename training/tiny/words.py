"""A small vocabulary for the tiny base models: every byte, and two hundred common words of captions.

A real CLIP vocabulary has 49,408 entries and would be larger than the whole tiny model. This one has every byte, so any
text can be encoded, and one token per common word.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

WORDS = """
a an the of in on at with and by for from to is it no photo picture image drawing sketch painting portrait close up
front back side view small big tiny large round square tall short long happy sad smiling sitting standing running
jumping sleeping waving holding wearing looking left right top bottom center middle dog cat bird fish bear fox mouse
robot mascot toy doll car house tree flower sun moon star ball box cup can bowl clock hat backpack person man woman
child face head body arm leg eye eyes tail wing red orange yellow green blue purple pink brown black white gray grey
gold silver dark light bright pale striped dotted plain background sky grass sand snow water wall floor table street
forest beach room day night style in sks character creature circle triangle shape shapes pattern user assistant
""".split()  # noqa: SIM905 - two hundred quoted words are harder to read

Merge = tuple[str, str]


def byte_letters() -> list[str]:
    """One printable letter for each of the 256 bytes, as in GPT-2's byte-level alphabet."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def learn_merges(words: Sequence[Sequence[str]]) -> list[Merge]:
    """Byte-pair encoding of `words` (each a list of letters) until each is one token; ties in alphabetical order."""
    return list(_merges_of(tuple(map(tuple, words))))


@cache  # a process that makes the tiny base model of every family learns the same words a dozen times
def _merges_of(words: tuple[tuple[str, ...], ...]) -> tuple[Merge, ...]:
    rows = [list(word) for word in words]
    merges: list[Merge] = []
    while True:
        pairs = Counter(pair for row in rows for pair in pairwise(row))
        if not pairs:
            return tuple(merges)
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for row in rows:
            place = 0
            while place < len(row) - 1:
                if (row[place], row[place + 1]) == best:
                    row[place : place + 2] = ["".join(best)]
                place += 1


def clip_vocabulary() -> tuple[dict[str, int], list[Merge]]:
    """Vocabulary and merges of a CLIP tokenizer: words end in `</w>`; start and end of text come last."""
    letters = byte_letters()
    merges = learn_merges([[*word[:-1], f"{word[-1]}</w>"] for word in dict.fromkeys(WORDS)])
    return _numbered([*letters, *(f"{letter}</w>" for letter in letters)], merges, CLIP_MARKS), merges


def qwen_vocabulary() -> tuple[dict[str, int], list[Merge]]:
    """Vocabulary and merges of a Qwen tokenizer: words start with a space; the last entries are the marks of a chat."""
    letters = byte_letters()
    merges = learn_merges([[letters[ord(" ")], *word] for word in dict.fromkeys(WORDS)])
    return _numbered(letters, merges, QWEN_MARKS), merges


def t5_vocabulary() -> list[tuple[str, float]]:
    """Pieces of a T5 tokenizer with their scores: words start with U+2581, and every letter is a piece."""
    letters = [chr(number) for number in range(33, 127)]
    words = [f"\u2581{word}" for word in dict.fromkeys(WORDS)]
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return [*marks, ("\u2581", -4.0), *((word, -2.0) for word in words), *((letter, -6.0) for letter in letters)]


CLIP_MARKS = ("<|startoftext|>", "<|endoftext|>")
QWEN_MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def _numbered(letters: list[str], merges: list[Merge], marks: tuple[str, ...]) -> dict[str, int]:
    made = dict.fromkeys(left + right for left, right in merges)
    return {entry: index for index, entry in enumerate(dict.fromkeys([*letters, *made, *marks]))}
