"""Writes tables of the code into the docs: the settings, and the meaning of each failure code.

`python tools/tables.py` writes them. `--check` only compares, and exits with 1 if a table is not up to date.
"""

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from core.advice import ADVICE
from core.errors import FailureCode
from core.settings import Settings

_DOCS = Path(__file__).resolve().parent.parent / "docs"
_BEGIN, _END = "<!-- begin: written by tools/tables.py -->\n", "<!-- end -->"
_BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}


def settings() -> str:
    """One table for each section of the classes, in their order."""
    sections: dict[str, list[str]] = {"the home folder": []}
    present = "the home folder"
    groups = [group for group in Settings.__bases__ if group is not BaseSettings]
    for line in "".join(map(inspect.getsource, (Settings, *groups))).splitlines():
        if heading := re.fullmatch(r"    # ---- (.+) ----", line):
            present = heading[1]
            sections[present] = []
        elif (field := re.match(r"    (\w+): ", line)) and field[1] in Settings.model_fields:
            sections[present].append(_row(field[1], Settings.model_fields[field[1]]))
    return "".join(
        f"\n### {name[0].upper()}{name[1:]}\n\n| variable | type | default | what it is |\n| --- | --- | --- | --- |\n"
        + "".join(rows)
        for name, rows in sections.items()
    )


def _row(name: str, field: FieldInfo) -> str:
    variable = f"{Settings.model_config['env_prefix']}{name.upper()}"
    return f"| `{variable}` | {_kind(field)} | {_default(field.default)} | {field.description} |\n"


def _kind(field: FieldInfo) -> str:
    name = _name(field.annotation)
    bounds = [
        text.format(getattr(bound, key))
        for bound in field.metadata
        for key, text in _BOUNDS.items()
        if getattr(bound, key, None) is not None
    ]
    return ", ".join([name, *bounds])


def _name(kind: Any) -> str:
    """A type as a reader who sets an environment variable would name it."""
    words = {str: "text", int: "whole number", float: "number", Path: "path", SecretStr: "secret text"}
    if kind is bool:
        return "`true`, `false`"
    if kind in words:
        return words[kind]
    origin, arguments = get_origin(kind), [part for part in get_args(kind) if part is not type(None)]
    if origin is Annotated:
        return _name(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is list:
        return f"JSON list of {_name(arguments[0])}"
    if origin is dict:
        return f"JSON object of {_name(arguments[1])}"
    return " or ".join(_name(part) for part in arguments)


def _default(value: Any) -> str:
    if value is None or value in ([], {}):
        return "unset" if value is None else "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def failures() -> str:
    """A row for each failure code: what happened, and what the owner of the training can do."""
    rows = [f"| `{code}` | {ADVICE[code].what} | {ADVICE[code].do} |\n" for code in FailureCode]
    return "".join(["\n| code | what happened | what the owner can do |\n| --- | --- | --- |\n", *rows])


TABLES: dict[str, Callable[[], str]] = {"settings.md": settings, "troubleshooting.md": failures}


def written(page: str, table: str) -> str:
    """`page` with the current table."""
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise SystemExit("a page has no markers for its table")
    return f"{before}{begin}{table}\n{end}{after}"


def main() -> int:
    outdated = []
    for name, table in TABLES.items():
        page = (_DOCS / name).read_text(encoding="utf-8")
        if (new := written(page, table())) != page:
            outdated.append(name)
            if "--check" not in sys.argv[1:]:
                (_DOCS / name).write_text(new, encoding="utf-8")
    if outdated and "--check" in sys.argv[1:]:
        print(f"docs: {', '.join(outdated)}: not up to date; run python tools/tables.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
