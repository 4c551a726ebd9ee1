"""Faults of a request in the words of the form: the label of a field, and a sentence about its value."""

import re

from pydantic.alias_generators import to_snake

from web.pages.messages import said
from web.pages.options import OPTIONS, option
from web.pages.texts import gettext

LABELS = {
    "prompt": "What to draw",
    "strength": "Strength",
    "count": "Pictures",
    "text": "Caption",
    "files": "Files",
    "confirm": "Your owner's name",
    "owner": "Owner",
    "token": "API token",
    "name": "Subject",
    "id": "Subject",
    "subject": "Subject",
    "subject_id": "Subject",
    "key": "The form",
    "credits_shown": "The form",
    "reason": "Reason",
}
SENTENCES = (
    (r"Input should be greater than or equal to (\S+)", r"must be at least \1"),
    (r"Input should be less than or equal to (\S+)", r"must be at most \1"),
    (r"Input should be greater than (\S+)", r"must be more than \1"),
    (r"Input should be less than (\S+)", r"must be less than \1"),
    (r"Input should be a multiple of (\S+)", r"must be a multiple of \1"),
    (r"Input should be a valid integer.*", "must be a whole number"),
    (r"Input should be a valid number.*", "must be a number"),
    (r"Input should be a valid .*", "is not understood; open the page again and retry"),
    (r"String should have at least 1 character", "must not be empty"),
    (r"String should have at least (\d+) characters?", r"must have at least \1 characters"),
    (r"String should have at most (\d+) characters?", r"must have at most \1 characters"),
    (r"String should match pattern .*", "has characters that are not allowed"),
    (r"Field required", "is missing; open the page again and retry"),
    (r"Input should be (.*)", r"must be \1"),
    (r"List should have at least (\d+) items.*", r"must be at least \1"),
    (r"List should have at most (\d+) items.*", r"must be at most \1"),
)
# In what a browser calls itself, of which the first fits: the others claim to be those after them.
_BROWSERS = {"Edg": "Edge", "OPR/": "Opera", "Firefox/": "Firefox", "Chrome/": "Chrome", "Safari/": "Safari"}
_SYSTEMS = {
    "iPhone": "iPhone", "iPad": "iPad", "Android": "Android", "Windows": "Windows", "Mac OS X": "macOS",
    "CrOS": "ChromeOS", "Linux": "Linux",
}  # fmt: skip


def browser(agent: str) -> str:
    """A browser and its system by what it calls itself, such as `Firefox · Windows`; as it is, if it is unknown."""
    found = [next((name for mark, name in marks.items() if mark in agent), "") for marks in (_BROWSERS, _SYSTEMS)]
    return " · ".join(filter(None, found)) or agent


def label(name: str) -> str:
    """The label of a field, as the forms have it."""
    first, _, rest = to_snake(name).partition(".")
    if first in ("image_ids", "images", "mask_ids", "files") and rest.split(".")[0].isdigit():
        return gettext("Picture %(number)s") % {"number": int(rest.split(".")[0]) + 1}
    if first.isdigit():
        return gettext("File %(number)s") % {"number": int(first) + 1}
    if first == "recipe" and rest:
        first, _, rest = rest.partition(".")
    path = f"{first}.{rest}" if rest else first
    if path in OPTIONS:
        return option(path)
    words = to_snake(rest or first).replace("_", " ").replace(".", ", ")
    return gettext(LABELS[first]) if first in LABELS else words[:1].upper() + words[1:]


def sentence(fault: str) -> str:
    """What is wrong with a value, without the terms of our validator."""
    for pattern, words in SENTENCES:
        if found := re.fullmatch(pattern, fault):
            return found.expand(gettext(words))
    return said(fault)
