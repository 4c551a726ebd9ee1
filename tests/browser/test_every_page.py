"""Every page of owners and operators, as in `make screenshots`: axe finds nothing, and none is wider than a phone."""

import inspect
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Browser
from starlette.routing import compile_path

from tests.browser.conftest import DESKTOP, PHONE, findings
from tools.screenshots import World, pages, sign_in
from web.app import create_app

pytestmark = pytest.mark.timeout(900)


# The body, and tables except that of samples, which scrolls beside its prompts.
TOO_WIDE = """() => [document.documentElement, ...document.querySelectorAll(".scroll:not(:has(.samples))")]
    .filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.getAttribute("aria-labelledby") ?? "page")"""

# Parts of a card that stick out of it. What scrolls may be wider, and rows that are links are.
STICKING_OUT = """() => [...document.querySelectorAll(".card")].flatMap((card) => {
  const edge = card.getBoundingClientRect().right - parseFloat(getComputedStyle(card).paddingRight) + 1;
  return [...card.querySelectorAll("*")].filter((one) => !one.closest(".scroll, .strip, .sr, svg, .rows a")
    && one.getBoundingClientRect().right > edge).map((one) => `${one.tagName} ${one.id} sticks out`);
})"""

DOUBLE = """() => [...document.querySelectorAll("[id]")].map((one) => one.id)
    .filter((id, at, all) => all.indexOf(id) !== at)"""


def shows_a_page(endpoint: Callable[..., Any]) -> bool:
    """Whether a handler renders a template, itself or by a helper of its module."""
    source = inspect.getsource(endpoint)
    module = sys.modules[endpoint.__module__]
    helpers = [getattr(module, name, None) for name in re.findall(r"\b(_\w+)\(", source)]
    texts = [source, *(inspect.getsource(one) for one in helpers if inspect.isfunction(one))]
    return any("render(" in text for text in texts)


# By OpenID Connect they lead elsewhere, and show the sign-in page only if that fails.
ELSEWHERE = ("/oidc/sign-in", "/oidc/callback")


def test_the_book_has_every_page(world: World) -> None:
    addresses = [address.split("?")[0] for by_name in pages(world).values() for address in by_name.values()]
    shown = []
    for route in create_app(world.services).routes:
        inner = route.effective_route_contexts() if hasattr(route, "effective_route_contexts") else [route]
        shown += [
            one.path for one in inner
            if "GET" in one.methods and one.endpoint.__module__.startswith("web.pages") and shows_a_page(one.endpoint)
        ]  # fmt: skip
    missing = [
        path for path in shown
        if path not in ELSEWHERE and not any(compile_path(path)[0].match(address) for address in addresses)
    ]  # fmt: skip
    assert len(shown) > 12
    assert missing == []


def test_axe_finds_nothing(world: World, browser: Browser, base: str) -> None:
    """On a phone in the dark, in German, whose words are longer; and the colours on a desktop in the light."""
    found, wide = [], []
    for token, by_name in pages(world).items():
        context = browser.new_context(base_url=base, locale="de")
        page = context.new_page()
        if token:
            sign_in(page, token)
        for name, address in by_name.items():
            page.set_viewport_size(PHONE)  # type: ignore[arg-type]
            page.emulate_media(color_scheme="dark")
            page.goto(address, wait_until="load")
            wide += [f"{name}: {one}" for one in page.evaluate(TOO_WIDE) + page.evaluate(STICKING_OUT)]
            found += [f"{name}: two elements have the id {one}" for one in page.evaluate(DOUBLE)]
            for scheme, one in findings(page, "dark", "light"):
                nodes = [node["html"][:160] for node in one["nodes"]]
                found.append(f"{name} ({scheme}): {one['id']} ({one['impact']}): {nodes}")
            page.set_viewport_size(DESKTOP)  # type: ignore[arg-type]
            wide += [f"{name} on a desktop: {one}" for one in page.evaluate(TOO_WIDE)]
        context.close()
    assert found == [], "\n".join(found)
    assert wide == []


def test_times_are_local_also_where_an_element_cannot_be(world: World, browser: Browser, base: str) -> None:
    """In the options of a select, and in the history of a job. Without script they say UTC."""
    compare = f"/trainings/{world.ready}/compare?with={world.earlier}"
    for script in (True, False):
        context = browser.new_context(
            base_url=base, java_script_enabled=script, locale="en-US", timezone_id="Asia/Kolkata"
        )
        page = context.new_page()
        sign_in(page, world.owner_token)
        page.goto(compare)
        at = page.locator("thead time").first.inner_text()
        assert f", {at}, ready" in page.locator("#with option[selected]").inner_text()
        sign_in(page, world.operator_token)
        page.goto(f"/operators/jobs/{world.failed}")
        history = page.locator("pre time").first.inner_text()
        assert [one.endswith(" UTC") for one in (at, history)] == [not script] * 2
        context.close()
