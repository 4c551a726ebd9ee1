"""Scrolling a subject with 500 pictures, as JSON: the CPU time of the page's main thread, from a trace of Chromium.

Wall time says more of the other work on a machine than of the page. `longest_ms` is of the task that uses most, with
its largest parts; `content_visibility` is whether pictures out of sight are left out, as the page's styles say.
"""

import io
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import CDPSession, Page, sync_playwright

from core.settings import Settings
from jobs.owners import tokens
from jobs.services import Services
from jobs.subjects import subject_pictures
from tools.screenshots import CHROMIUM, FLAGS, PICTURES, served, sign_in

NUMBER, SIDE = 500, 512
TURNS, PIXELS, EVERY_MS = 60, 700, 60  # of the wheel
SETTLED_MS = 2000  # after the page has loaded
_WITHOUT = """() => { const sheet = new CSSStyleSheet(); sheet.replaceSync(".picture { content-visibility: visible; }");
    document.adoptedStyleSheets = [sheet]; }"""
_CATEGORIES = ["toplevel", "blink", "v8", "devtools.timeline", "disabled-by-default-devtools.timeline"]
_TASKS = ("RunTask", "ThreadControllerImpl::RunTask")  # the same one, as two categories call it

Event = dict[str, Any]


def add_pictures(services: Services) -> None:
    files = sorted(PICTURES.glob("*.png"))
    for number in range(NUMBER):
        with Image.open(files[number % len(files)]) as whole:
            picture = whole.convert("RGB").resize((SIDE, SIDE))
        picture.paste((number % 256, number // 256, 90), (0, 0, 16, 16))  # no two are the same
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=90)
        subject_pictures.add(services, "ada", "rex", out.getvalue(), name=f"{number}.jpg")


def trace(page: Page, tracing: CDPSession) -> list[Event]:
    """The events of the browser while the page is scrolled with the wheel."""
    events: list[Event] = []
    ended: list[bool] = []
    tracing.on("Tracing.dataCollected", lambda part: events.extend(part["value"]))
    tracing.on("Tracing.tracingComplete", lambda _: ended.append(True))
    config = {"includedCategories": _CATEGORIES}
    tracing.send("Tracing.start", {"transferMode": "ReportEvents", "traceConfig": config})
    page.mouse.move(200, 400)
    for _ in range(TURNS):
        page.mouse.wheel(0, PIXELS)
        page.wait_for_timeout(EVERY_MS)
    tracing.send("Tracing.end")
    while not ended:
        page.wait_for_timeout(100)
    return events


def of_main_thread(events: list[Event]) -> dict[str, Any]:
    """CPU milliseconds of the busiest main thread: in all, of its longest task, and of what that does."""
    mains = {
        (one["pid"], one["tid"]) for one in events if one.get("args", {}).get("name") == "CrRendererMain"
    }  # fmt: skip
    threads = [
        [one for one in events if one.get("ph") == "X" and (one["pid"], one["tid"]) == thread] for thread in mains
    ]
    mine = max(threads, key=lambda found: sum(one.get("tdur", 0) for one in found))
    tasks = [one for one in mine if one["name"] == _TASKS[0]]
    longest = max(tasks, key=lambda one: int(one.get("tdur", 0)))
    end = longest["ts"] + longest["dur"]
    parts: Counter[str] = Counter()
    for one in mine:
        if one["name"] not in _TASKS and longest["ts"] <= one["ts"] and one["ts"] + one["dur"] <= end:
            parts[one["name"]] += one.get("tdur", 0)
    return {
        "tasks_ms": round(sum(one.get("tdur", 0) for one in tasks) / 1000),
        "longest_ms": round(longest["tdur"] / 1000, 1),
        "longest_wall_ms": round(longest["dur"] / 1000, 1),
        "parts_ms": {name: round(spent / 1000, 1) for name, spent in parts.most_common(8) if spent >= 1000},
    }


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="imprint-") as home:
        services = Services(Settings(_env_file=None, home=Path(home)))
        services.database.migrate()
        add_pictures(services)
        secret, _ = tokens.create(services, "the browser", owner_id="ada")
        with served(services) as base, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, chromium_sandbox=False)
            for without in (False, True):
                page = browser.new_page(base_url=base, viewport={"width": 390, "height": 844})
                sign_in(page, secret)
                page.goto("/subjects/rex", wait_until="load")
                if without:
                    page.evaluate(_WITHOUT)
                page.wait_for_timeout(SETTLED_MS)
                found = of_main_thread(trace(page, page.context.new_cdp_session(page)))
                print(json.dumps({"content_visibility": not without, **found}))
                page.close()
            browser.close()
        services.database.close()
        services.decoder.close()


if __name__ == "__main__":
    main()
