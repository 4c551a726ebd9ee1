"""`python -m tools.texts`: adds to each catalogue of the page what it lacks, and removes what is not shown any more.

`--check` only compares, and exits with 1 if a catalogue lacks a translation or has one too many.
"""

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from jinja2.ext import extract_from_ast

from core.advice import ADVICE
from jobs.requests import recipe_options
from jobs.subjects import presets
from tools import messages
from training.families.registry import BASE_MODELS, FAMILIES
from web.pages import account, chart, errors, options, render, texts, training_list, wording
from web.pages.assets import STATIC
from web.pages.messages import WORDS
from web.pages.operators import owner
from web.problems import FIXED_DETAILS, PROBLEMS

Key = tuple[str, str]  # the text, and its plural if it has one
_PAGES = Path(render.__file__).parent
_TEMPLATES = _PAGES.parent / "templates" / "page"


def collect() -> list[Key]:
    """Every text of the templates, of the page's modules and of the scripts."""
    found: dict[Key, None] = {}
    for path in sorted(_TEMPLATES.rglob("*.html")):
        found |= dict.fromkeys(_of_template(path))
    for path in sorted(_PAGES.rglob("*.py")):
        found |= dict.fromkeys(_of_module(path))
    found |= dict.fromkeys(
        (text, "") for text in (*_of_tables(), *texts.of_scripts(STATIC), *messages.collect()) if text
    )
    return list(found)


def _of_template(path: Path) -> Iterator[Key]:
    made = render.environment().parse(path.read_text())
    for _, function, message in extract_from_ast(made, ("_", "gettext", "ngettext", "count"), babel_style=False):
        yield from _key(function, message if isinstance(message, tuple) else (message,))


def _of_module(path: Path) -> Iterator[Key]:
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("gettext", "ngettext", "count")
        ):
            values = [
                one.value if isinstance(one, ast.Constant) and isinstance(one.value, str) else None for one in node.args
            ]
            yield from _key(node.func.id, tuple(values))


def _key(function: str, given: tuple[str | None, ...]) -> Iterator[Key]:
    named = [text for text in given if text]
    if function == "count" and named:
        one, many = named[0], named[1] if len(named) > 1 else f"{named[0]}s"
        yield f"%(number)s {one}", f"%(number)s {many}"
    elif function == "ngettext" and len(named) > 1:
        yield named[0], named[1]
    elif function in ("_", "gettext") and named:
        yield named[0], ""


def _of_tables() -> Iterator[str]:
    """The texts that are looked up by a name."""
    tables = (
        render.STATUSES, render.STAGES, render.ENTRIES, render.DRAWING_ENTRIES, render.DELETION_KINDS, render.SIDES,
        render.GROUPS, render.NOTICES, account.EVENT_TEXTS, training_list.FILTERS, errors.TITLES, errors.DETAILS,
        wording.LABELS, owner.LIMITS, options.OPEN, options.OPTIONS, render.SCOPES,
    )  # fmt: skip
    for table in tables:
        yield from table.values()
    yield from (title for _, title in PROBLEMS.values())
    yield from (words for _, words in wording.SENTENCES)
    for advice in ADVICE.values():
        yield from (advice.what, advice.do)
    for preset in presets.PRESETS:
        yield from (preset.title, preset.about)
    yield from map(recipe_options.help_of, recipe_options.flat(recipe_options.defaults("sd15")))
    for base in BASE_MODELS.values():
        yield base.about
    for family in FAMILIES.values():
        yield from family.refused.values()
    yield from (*WORDS, *FIXED_DETAILS, chart.CANNOT_TELL)


def main() -> None:
    wanted = collect()
    is_wrong = False
    for language in sorted(set(texts.LANGUAGES) - {"en"}):
        path = texts.LOCALE / f"{language}.po"
        entries = texts.catalogue(language).entries
        lacking = [key for key in wanted if not all(entries.get(key, ("",)))]
        stale = set(entries) - set(wanted) - {("", "")}
        is_wrong |= bool(lacking or stale)
        print(f"{path.name}: {len(wanted)} texts, {len(lacking)} not translated, {len(stale)} not used")
        if "--check" not in sys.argv:
            path.write_text(_written(entries, wanted), encoding="utf-8")
    if is_wrong and "--check" in sys.argv:
        sys.exit(1)


def _written(entries: dict[Key, tuple[str, ...]], wanted: list[Key]) -> str:
    header = entries.get(("", ""), ("",))[0]
    blocks = ['msgid ""\nmsgstr ""\n' + "".join(f"{_quoted(line)}\n" for line in header.splitlines(keepends=True))]
    forms = 1 if "nplurals=1" in header else 2
    for one, many in wanted:
        block = f"msgid {_quoted(one)}\n"
        translated = entries.get((one, many), ("",) * (forms if many else 1))
        if many:
            block += f"msgid_plural {_quoted(many)}\n"
            block += "".join(f"msgstr[{at}] {_quoted(form)}\n" for at, form in enumerate(translated))
        else:
            block += f"msgstr {_quoted(translated[0])}\n"
        blocks.append(block)
    return "\n".join(blocks)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


if __name__ == "__main__":
    main()
