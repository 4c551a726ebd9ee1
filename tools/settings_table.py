"""Writes the table of settings in docs/settings.md from `core.settings.Settings`.

`python tools/settings_table.py` writes it; with `--check` it only looks, and ends with 1 if it is not up to date.
"""

import inspect
import re
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from core.settings import Settings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
_BEGIN, _END = "<!-- settings: written by tools/settings_table.py -->\n", "<!-- settings: end -->"
_BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}


def table() -> str:
    """One table for each ruled-off section of the class, in its order."""
    sections: dict[str, list[str]] = {"the home folder": []}
    present = "the home folder"
    for line in inspect.getsource(Settings).splitlines():
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
    said = _name(field.annotation)
    bounds = [
        words.format(getattr(bound, name))
        for bound in field.metadata
        for name, words in _BOUNDS.items()
        if getattr(bound, name, None) is not None
    ]
    return ", ".join([said, *bounds])


def _name(kind: Any) -> str:
    """A type in the words of somebody who sets an environment variable."""
    words = {str: "text", int: "whole number", float: "number", Path: "path", SecretStr: "secret text"}
    if kind is bool:
        return "`true`, `false`"
    if kind in words:
        return words[kind]
    origin, arguments = get_origin(kind), [part for part in get_args(kind) if part is not type(None)]
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


def written(page: str) -> str:
    """`page` with the table that the code gives now."""
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise SystemExit(f"{PAGE} has no markers for the table")
    return f"{before}{begin}{table()}\n{end}{after}"


def main() -> int:
    page = PAGE.read_text(encoding="utf-8")
    if written(page) == page:
        return 0
    if "--check" in sys.argv[1:]:
        print(f"{PAGE} is not what the settings say: run python tools/settings_table.py", file=sys.stderr)
        return 1
    PAGE.write_text(written(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
