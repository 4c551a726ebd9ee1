"""Prepares the pages for Sphinx: a copy of each with links of the site, and a table of contents.

The pages are written for GitHub: README.md links to docs/task.md, which links to ../CONTRIBUTING.md. Links to files
that are not on the site (code, the licence) become plain text.
"""

import os
import re
import shutil
from pathlib import Path

from tools.site import reference
from tools.site.nav import INDEX, MADE_IN, ROOT, sections

_LINK = re.compile(r"(!?)\[([^\]]*(?:\[[^\]]*\])?[^\]]*)\]\(([^)\s]+)\)")


def place(page: str) -> str:
    """The path of a page of the repository on the site."""
    return page.removeprefix("docs/").lower() if page.startswith("docs/") else f"project/{page.lower()}"


def stage(folder: Path) -> None:
    """Write the source of the site into `folder`, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs" / "images", folder / "images")
    pages = [INDEX, *(page for one in sections().values() for page in one)]
    for page in pages:
        target = folder / place(page)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_with_links((ROOT / page).read_text(encoding="utf-8"), page, set(pages)), encoding="utf-8")
    for name, text in reference.pages().items():
        (folder / "reference").mkdir(exist_ok=True)
        (folder / "reference" / name).write_text(text, encoding="utf-8")
    with (folder / "index.md").open("a", encoding="utf-8") as index:
        index.write(_contents())


def _contents() -> str:
    parts = []
    for section, pages in sections().items():
        places = [place(page) for page in pages]
        if section == MADE_IN:
            places += [f"reference/{name}" for name in reference.pages()]
        lines = "\n".join(one.removesuffix(".md") for one in places)
        parts.append(f"\n```{{toctree}}\n:caption: {section}\n:hidden:\n\n{lines}\n```\n")
    return "".join(parts)


def _with_links(text: str, page: str, pages: set[str]) -> str:
    """Replace every relative link outside of fenced blocks by the link of the site."""
    return re.sub(
        r"(^```.*?^```$)|" + _LINK.pattern,
        lambda found: found[0] if found[1] else _link(found[2], found[3], found[4], page, pages),
        text,
        flags=re.MULTILINE | re.DOTALL,
    )


def _link(bang: str, text: str, target: str, page: str, pages: set[str]) -> str:
    if re.match(r"[a-z]+:", target) or target.startswith("#"):
        return f"{bang}[{text}]({target})"
    name, _, anchor = target.partition("#")
    found = os.path.normpath(Path(page).parent / name)
    here = Path(place(page)).parent
    if found.startswith("docs/images/"):
        return f"{bang}[{text}]({os.path.relpath(found.removeprefix('docs/'), here)})"
    if found in pages:
        return f"[{text}]({os.path.relpath(place(found), here)}{'#' + anchor if anchor else ''})"
    return text if text.strip("`") == found or "`" in text else f"{text} (`{found}`)"
