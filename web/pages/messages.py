"""Messages of other rooms in the language of the request.

They are stored with trainings and pictures, and sent by the API, in English. So the page recognises a message by the
fixed parts of the sentence that it was made from, whose values stand as `{name}` in the catalogues, and puts the values
into the translation. `tools/messages.py` collects the sentences where they are written.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from web.pages.texts import catalogue, language

VALUE = re.compile(r"\{([a-z]\w*)\}")
# Values that are words, such as the state of a training.
WORDS = ("training", "drawing", "picture", "subject", "owner", "token", "pending", "ready", "failed", "cancelled")
_SEPARATORS = {"zh": {": ": "：", "; ": "；"}}  # noqa: RUF001 - as Chinese writes them
_MOST_CHARACTERS = 3_000  # of a message that is looked at
_MOST_DEPTH = 40  # of messages in messages, and after one another
_MOST_ENDS = 4  # a sentence of ours has fewer semicolons


@dataclass(frozen=True)
class Template:
    """A sentence with values. `parts`: its fixed texts, the first before the first of `names`."""

    parts: tuple[str, ...]
    names: tuple[str, ...]
    translated: str

    @classmethod
    def of(cls, sentence: str, translated: str) -> "Template":
        found = VALUE.split(sentence)
        return cls(tuple(found[::2]), tuple(found[1::2]), translated)

    @property
    def weight(self) -> int:
        """How much of a message is fixed."""
        return sum(map(len, self.parts))

    def values(self, message: str) -> dict[str, str] | None:
        """The values in a message that was made from this; None for another one. Takes linear time."""
        first, *middle, last = self.parts
        if len(message) < self.weight or not message.startswith(first) or not message.endswith(last):
            return None
        values, at, end = [], len(first), len(message) - len(last)
        for part in middle:
            found = message.find(part, at, end)
            if found < 0:
                return None
            values.append(message[at:found])
            at = found + len(part)
        values.append(message[at:end])
        return dict(zip(self.names, values, strict=True))


@cache
def _templates(name: str) -> list[Template]:
    """The sentences with values of a catalogue. Of two that fit, the one with more fixed text comes first."""
    made = [
        Template.of(one, forms[0])
        for (one, many), forms in catalogue(name).entries.items()
        if VALUE.search(one) and not many
    ]
    return sorted(made, key=lambda one: -one.weight)


def said(message: str | None) -> str:
    """A message in the language of the request; as it is, if it was made from no sentence that is known."""
    text = message or ""
    return text if len(text) > _MOST_CHARACTERS else _translated(text) or text


def _translated(text: str, depth: int = 0, is_value: bool = False) -> str | None:
    if depth > _MOST_DEPTH or not catalogue(language()).entries:
        return None
    if text and (whole := catalogue(language()).entries.get((text, ""))):
        return whole[0] or None
    for template in _templates(language()):
        values = template.values(text)
        if values is not None and (known := _known(values, depth)) is not None:
            return VALUE.sub(lambda name: known[name[1]], template.translated)
    return _of_parts(text, depth, is_value)


def _known(values: dict[str, str], depth: int) -> dict[str, str] | None:
    """The values in the language of the request. None, if one spans several messages of which some are unknown."""
    found = {name: _translated(value, depth + 1, is_value=True) for name, value in values.items()}
    if any(found[name] is None and re.search("[;:] ", value) for name, value in values.items()):
        return None
    return {name: found[name] or value for name, value in values.items()}


def _of_parts(text: str, depth: int, is_value: bool) -> str | None:
    """A message after the name of what it is about, or several messages."""
    ends = [text.find(": "), *[found.start() for found in re.finditer("; ", text)][:_MOST_ENDS]]
    for end in (end for end in ends if end > 0):
        if (first := _translated(text[:end], depth + 1, is_value=True)) is not None:
            tail = text[end + 2 :]
            return f"{first}{_separator(text[end : end + 2])}{_translated(tail, depth + 1) or tail}"
    head, found, tail = text.partition(": ")
    if found and not is_value and (rest := _translated(tail, depth + 1)) is not None:
        return f"{head}{_separator(': ')}{rest}"
    return None


def _separator(text: str) -> str:
    return _SEPARATORS.get(language(), {}).get(text, text)


def in_words(content: Any) -> Any:
    """The messages of an answer in JSON that a script of the page shows: its `detail`, `text`, `notes` and `faults`."""
    if isinstance(content, list):
        return [in_words(one) for one in content]
    if not isinstance(content, Mapping):
        return content
    return {name: _of_field(name, value) for name, value in content.items()}


def _of_field(name: str, value: Any) -> Any:
    if name in ("detail", "text") and isinstance(value, str):
        return said(value)
    if name == "notes":
        return [said(one) for one in value]
    if name == "faults" and isinstance(value, Mapping):
        return {field: said(one) for field, one in value.items()}
    return in_words(value)
