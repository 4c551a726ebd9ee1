"""Every command on the pages, typed as it stands there, in order, in a folder with pictures, against a running site.

Three things differ from a reader's machine: `sd15` is the tiny base model; `imprint submit` and `python -m training`
get `--resolution 64 --max-steps 2`; and commands are forked from a process that has the large libraries loaded, but for
those of the README, which start as a reader's do. Blocks that cannot run here say so on the page; test_pages.py lists
them.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from core.errors import IllegalMove
from jobs import service
from tests.docs.pages import PAGES, ROOT, RUN, Block, blocks, name_of
from tests.servers.shell import run_script
from tests.site import MASCOT, Site, site, until

README = ROOT / "README.md"
SMALL = "--resolution 64 --max-steps 2 "


def typed(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language in RUN and block.excuse is None]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def running(place: Path, base_model: Path) -> Iterator[Site]:
    """A site whose workers may read the pages' folders."""
    start = ("io", "train", "draw", "beat")
    with site(place / "site", base_model, start=start, IMPRINT_FILE_ROOTS=json.dumps([str(place)])) as made:
        made.grant("ada")
        made.grant("me")
        made.start("web")
        yield made


def test_every_command_of_the_readme_does_what_it_should(running: Site, place: Path) -> None:
    do_what_stands_on(README, running, place, fresh=True)


@pytest.mark.parametrize("page", [page for page in PAGES if typed(page) and page != README], ids=name_of)
def test_every_command_on_the_page_does_what_it_should(page: Path, running: Site, place: Path) -> None:
    do_what_stands_on(page, running, place)


def do_what_stands_on(page: Path, running: Site, place: Path, *, fresh: bool = False) -> None:
    folder = place / name_of(page).replace("/", "-")
    (folder / "pictures").mkdir(parents=True)
    for file in sorted(MASCOT.iterdir()):
        shutil.copy(file, folder / "pictures")
    try:
        done = run_script(
            script(page, folder),
            cwd=folder,
            # Readers type in a checkout, where `demo` and `fakes` are; the wheel has neither.
            env=running.surroundings(API=running.web_url, PYTHONPATH=str(ROOT)),
            fresh=fresh,
        )
    finally:
        leave_nothing_running(running)
    print(done.stdout)
    begun = re.findall(r"^--- (\S+:\d+)$", done.stdout, re.MULTILINE)
    assert done.returncode == 0, f"{begun[-1]} ended with {done.returncode}:\n{done.stdout[-3000:]}"
    assert begun == [str(block) for block in typed(page)]


def script(page: Path, folder: Path) -> str:
    """One script for the page, so that what one block sets the next ones have."""
    lines = []
    for block in typed(page):
        lines.append(f"echo '--- {block}'")
        if block.language == "python":
            (folder / f"line_{block.line}.py").write_text(block.text)
            lines.append(f"python line_{block.line}.py")
        else:
            lines.append(re.sub(r"(?<=imprint submit )|(?<=python -m training )", SMALL, block.text))
    return "\n".join(lines)


def leave_nothing_running(site: Site) -> None:
    """A training at full size that a page has started would keep the next page waiting."""
    wait_until_requests_are_carried_out(site)
    for view in service.jobs(site.services, active=True, limit=100):
        with suppress(IllegalMove):  # it ended meanwhile
            service.cancel(site.services, view.job_id)


def wait_until_requests_are_carried_out(site: Site) -> None:
    """A page may end with a request that nothing on it waits for: the training would begin after all were cancelled."""
    # The worker receives messages in their order: once this one is answered, those before it are held or carried out.
    site.application.send_task("imprint.job", kwargs={"job_id": "none"}, queue="io").get(timeout=60, propagate=False)
    assert site.redis is not None
    with redis.Redis.from_url(site.redis.url) as client:
        until(lambda: not any(map(is_request, client.hvals("unacked"))), 60, "no request left")


def is_request(message: bytes) -> bool:
    return b'"imprint.lora"' in message or b'"imprint.train_lora"' in message


def test_every_page_with_commands_is_among_them() -> None:
    assert {page.relative_to(ROOT).as_posix() for page in PAGES if typed(page)} >= {
        "README.md", "docs/task.md", "docs/operations.md", "docs/train-your-pictures.md", "docs/settings.md",
        "docs/http-api.md",
    }  # fmt: skip
