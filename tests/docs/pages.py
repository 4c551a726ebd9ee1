"""The pages as the tests see them: their fenced blocks, headings and links."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_RECORDS = sorted((ROOT / "docs" / "adr").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted(set((ROOT / "docs").rglob("*.md")) - set(_RECORDS))]
ALSO_LINKED = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *_RECORDS]

RUN = ("sh", "python")  # what a reader types
SHOWN = ("text", "json", "ini")  # what a reader sees, or puts into a file

_FENCE = re.compile(r"```(\S*)")
_EXCUSE = re.compile(r"<!-- not run here: (.+\S) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block. `line` is its opening fence's; `excuse` says why a command is not run by the tests."""

    page: Path
    line: int
    language: str
    text: str
    excuse: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@cache
def blocks(page: Path) -> tuple[Block, ...]:
    """The fenced blocks of a page, in order."""
    return tuple(_blocks(page))


def _blocks(page: Path) -> Iterator[Block]:
    begun, language, held, above = 0, "", [], ""
    excuse: str | None = None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if begun:
            if line == "```":
                yield Block(page, begun, language, "\n".join(held) + "\n", excuse)
                begun, above = 0, ""
            else:
                held.append(line)
        elif fence := _FENCE.match(line.lstrip()):
            assert line == line.lstrip(), f"{page}:{number}: an indented block is not seen by the tests"
            content = _EXCUSE.fullmatch(above)
            begun, language, held, excuse = number, fence[1], [], content[1] if content else None
        else:
            above = line
    assert not begun, f"{page}:{begun}: this block does not end"


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What may stand behind `#` in a link, by GitHub's rule."""
    bare = (re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip() for heading in headings(page))
    return {heading.lower().replace(" ", "-") for heading in bare}


def links(page: Path) -> list[str]:
    """Targets of links and pictures."""
    without_code = re.sub(r"`[^`\n]+`", "", prose(page))
    return re.findall(r"\]\(([^)\s]+)\)", without_code)


def section(page: Path, heading: str) -> str:
    """What stands below a heading, up to the next one."""
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,6}} |\Z)", prose(page), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{page.name} has no heading {heading!r}"
    return found[2]


def table_rows(text: str) -> dict[str, str]:
    """Rows of tables, by each word in code of their first cell."""
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return {name: row for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


def name_of(page: Path) -> str:
    """Short, and of one page only."""
    return page.relative_to(ROOT).with_suffix("").as_posix().removeprefix("docs/")
