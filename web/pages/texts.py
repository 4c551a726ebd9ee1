"""The page's texts in several languages: the catalogues of `web/locale/`, and which one a request gets.

English texts are the keys. A translation is one gettext file, `web/locale/LANGUAGE.po`; `python -m tools.texts` adds
what it lacks and removes what no page shows any more.
"""

import gettext as stdlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import cache
from pathlib import Path

LOCALE = Path(__file__).resolve().parent.parent / "locale"
LANGUAGES = {"en": "English", "de": "Deutsch", "zh": "中文"}
COOKIE = "imprint_language"
_DEFAULT = "en"
_language: ContextVar[str] = ContextVar("language", default=_DEFAULT)


class Catalogue:
    """The translations of one language. A text that is missing stays English."""

    def __init__(self, text: str) -> None:
        self.entries = dict(parse(text))
        header = self.entries.get(("", ""), ("",))[0]
        found = re.search(r"plural=([^;]+);", header)
        self.plural: Callable[[int], int] = stdlib.c2py(found[1]) if found else lambda n: int(n != 1)

    def get(self, one: str, many: str = "", number: int = 1) -> str:
        """The translation of a text, or of its form for a number."""
        forms = self.entries.get((one, many))
        if not forms or not all(forms):
            return one if not many or number == 1 else many
        return forms[self.plural(number) if many else 0]


def parse(text: str) -> Iterator[tuple[tuple[str, str], tuple[str, ...]]]:
    """The entries of a gettext file: text and plural, with the forms of the translation."""
    for block in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in block.splitlines():
            if found := re.match(r'(msg\w+(?:\[\d\])?)?\s*(".*")\s*$', line):
                name = found[1] or name
                fields[name] = fields.get(name, "") + json.loads(found[2])
        if "msgid" in fields:
            forms = tuple(value for key, value in fields.items() if key.startswith("msgstr"))
            yield (fields["msgid"], fields.get("msgid_plural", "")), forms


@cache
def catalogue(language: str) -> Catalogue:
    """The catalogue of a language; an empty one for English."""
    path = LOCALE / f"{language}.po"
    return Catalogue(path.read_text(encoding="utf-8") if path.is_file() else "")


def gettext(text: str) -> str:
    """A text in the language of the request."""
    return catalogue(_language.get()).get(text)


def ngettext(one: str, many: str, number: int) -> str:
    """A text in the language of the request, in the form for a number."""
    return catalogue(_language.get()).get(one, many, number)


def language() -> str:
    """The language of the request."""
    return _language.get()


def use(accepted: str, cookies: str = "") -> None:
    """Choose the language of this request: the one of the cookie, else the first accepted one that there is."""
    chosen = re.search(rf"(?:^|;\s*){COOKIE}=(\w\w)\b", cookies)
    if chosen and chosen[1] in LANGUAGES:
        _language.set(chosen[1])
        return
    ranked = []
    for part in accepted[:500].split(","):
        name, _, quality = part.strip().partition(";q=")
        weight = float(quality) if re.fullmatch(r"[01](\.\d{1,3})?", quality) else 1.0
        ranked.append((-weight, name.split("-")[0].lower()))
    known = [name for weight, name in sorted(ranked, key=lambda one: one[0]) if weight < 0 and name in LANGUAGES]
    _language.set(known[0] if known else _DEFAULT)


class Texts(Mapping[str, str]):
    """A table of English texts that answers in the language of the request."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self.table = table

    def __getitem__(self, key: str) -> str:
        return gettext(self.table[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)


def count(value: int, one: str, many: str | None = None) -> str:
    """`1 picture`, `3 pictures`."""
    return ngettext(f"%(number)s {one}", f"%(number)s {many or one + 's'}", value).replace("%(number)s", number(value))


def number(value: float, form: str = ",") -> str:
    """A number as the language of the request writes it. `form`: as Python formats it, such as `.4f`.

    Thin spaces stand between thousands: no language reads them as a decimal point.
    """
    return format(value, form).translate(_MARKS | {ord("."): decimal_mark()})


_MARKS = {ord(","): "\u202f"}


def decimal_mark() -> str:
    """What stands before the decimals of a number."""
    return "," if language() == "de" else "."


# ---- the scripts ----------------------------------------------------------------------------------------------------

_IN_SCRIPT = re.compile(r'\bt\("((?:[^"\\]|\\.)*)"')


@cache
def of_scripts(folder: Path) -> tuple[str, ...]:
    """The texts of the scripts: what they pass to `t`."""
    found = {
        json.loads(f'"{text}"') for path in sorted(folder.glob("*.js")) for text in _IN_SCRIPT.findall(path.read_text())
    }
    return tuple(sorted(found))


@cache
def _script_texts(folder: Path, name: str) -> str:
    return json.dumps({text: catalogue(name).get(text) for text in of_scripts(folder)}, ensure_ascii=False)


def script_texts(folder: Path) -> str:
    """The translated texts of the scripts as JSON; empty in English."""
    return "" if language() == _DEFAULT else _script_texts(folder, language())
