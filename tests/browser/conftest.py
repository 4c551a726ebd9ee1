"""One site with the page for all tests here, a browser, and pages that may talk to that site only."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, Page, Request, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from core.errors import IllegalMove
from jobs import service
from jobs.owners import tokens
from jobs.services import Services
from tests.site import ROOT, Site, site
from tools.screenshots import World, make_world, served

SHOTS = ROOT / "test-output" / "browser"
CHROMIUM = os.environ.get("IMPRINT_TEST_CHROMIUM", "/usr/bin/chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
WAIT_MS = 120_000  # of one step; on a machine that does other things at the same time, all take their time
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
Scheme = Literal["light", "dark"]


@dataclass
class Visitor:
    """Somebody at the page, and every request that their browser made."""

    site: Site
    browser: Browser
    asked: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def open(self, *, size: dict[str, int] = DESKTOP, scheme: Scheme = "light", **options: Any) -> Page:
        """A window of its own, with no session."""
        context = self.browser.new_context(
            viewport=size,  # type: ignore[arg-type]
            color_scheme=scheme,
            permissions=["clipboard-read", "clipboard-write"],
            **{"base_url": self.site.web_url, **options},
        )
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.on("request", self._note)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self._hear(message.type, message.text))
        return page

    def _note(self, request: Request) -> None:
        self.asked.append(request.url)

    def _hear(self, kind: str, text: str) -> None:
        # A refused form is no fault of the page; a broken policy or a script that fails is.
        if kind == "error" and not text.startswith("Failed to load resource: the server responded with a status"):
            self.errors.append(text)

    def sign_in(self, page: Page, owner_id: str, *scopes: str) -> None:
        """With a service token, so that one form does for owners and operators; without looking at a page."""
        secret, _ = tokens.create(self.site.services, "browser", scopes=scopes or ("read", "train"))
        form = {"token": secret, "owner": owner_id}
        headers = {"Origin": self.site.web_url}
        answer = page.request.post("/sign-in", form=form, headers=headers, max_redirects=0)
        assert answer.status == 303, answer.text()

    def sign_in_by_form(self, page: Page, owner_id: str) -> None:
        """As `sign_in`, but as a person does it; ends on the page of all subjects."""
        secret, _ = tokens.create(self.site.services, "browser", scopes=("read", "train"))
        page.goto("/sign-in")
        page.get_by_label("API token").fill(secret)
        page.get_by_text("I have a service token").click()
        page.get_by_label("Owner").fill(owner_id)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(lambda url: "/sign-in" not in url)

    @property
    def services(self) -> Services:
        return self.site.services


@pytest.fixture(scope="package")
def web_site(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("web-site")
    with site(folder, base_model, start=("io", "train", "beat", "web"), IMPRINT_WEB_RATE_PER_S="500") as running:
        yield running


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        pytest.fail(f"there is no browser at {CHROMIUM}: tools/system.sh installs one")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, chromium_sandbox=False)
        yield started
        started.close()


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Owners and trainings in every state, as `make screenshots` shows them. No worker runs."""
    made = make_world(tmp_path_factory.mktemp("world"))
    yield made
    made.services.database.close()
    made.services.decoder.close()


@pytest.fixture(scope="package")
def base(world: World) -> Iterator[str]:
    """The address of the page of `world`."""
    with served(world.services) as address:
        yield address


@pytest.fixture
def page(browser: Browser, base: str) -> Iterator[Page]:
    """A window on the page of `world`."""
    context = browser.new_context(base_url=base, locale="en")
    context.set_default_timeout(WAIT_MS)
    yield context.new_page()
    context.close()


@pytest.fixture
def visitor(web_site: Site, browser: Browser) -> Iterator[Visitor]:
    """Nothing leaves the machine, no script fails, and the policy of the page is never broken."""
    made = Visitor(web_site, browser)
    yield made
    for context in browser.contexts:
        with suppress(PlaywrightError):  # a window that a failed test left in the middle of something
            context.close()
    for job in service.jobs(web_site.services, active=True, limit=100):  # or the next test would wait for its worker
        with suppress(IllegalMove):
            service.cancel(web_site.services, job.job_id)
    assert [address for address in made.asked if not address.startswith(web_site.web_url)] == []
    assert made.errors == []


@pytest.fixture
def shoot(request: pytest.FixtureRequest) -> Callable[[Page, str], None]:
    """Keep a picture of the whole page under test-output/, if IMPRINT_TEST_SHOTS is set: each costs half a second."""

    def keep(page: Page, name: str) -> None:
        if not os.environ.get("IMPRINT_TEST_SHOTS"):
            return
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SHOTS / f"{re.sub(r'[^a-z0-9-]+', '-', name)}.png", full_page=True)

    return keep


def check_accessible(page: Page) -> None:
    """axe finds nothing serious or critical, in light and in dark."""
    for scheme, one in findings(page, "light", "dark"):
        if one["impact"] in ("serious", "critical"):
            nodes = "\n".join(f"{node['html'][:200]} {node.get('failureSummary', '')}" for node in one["nodes"])
            pytest.fail(f"{page.url} ({scheme}): {one['id']}: {nodes}")
    page.emulate_media(color_scheme="light")


def findings(page: Page, *schemes: Scheme) -> Iterator[tuple[Scheme, dict[str, Any]]]:
    """What axe finds in each scheme. Of the rules, only that of contrast depends on it; a run costs half a second.

    A page gets the script once, and gives back the violations only: `Axe().run` costs a third more.
    """
    if not page.evaluate("typeof axe === 'object'"):
        page.evaluate(f"{AXE_SCRIPT}; null")
    for number, scheme in enumerate(schemes):
        page.emulate_media(color_scheme=scheme)
        options = {"resultTypes": ["violations"], **({"runOnly": ["color-contrast"]} if number else {})}
        found = page.evaluate("(options) => axe.run(options).then((result) => result.violations)", options)
        yield from ((scheme, one) for one in found)
