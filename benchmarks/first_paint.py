"""First paint of the page on a slow connection, as JSON: Chromium at the size of a phone, with nothing cached.

The network is the browser's own emulation of "slow 3G": 400 ms for each request and 400 kbit/s. Server and browser
share the machine; `server_ms` is how long the page takes without the network. The pages are those of
`make screenshots`.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from tools.screenshots import CHROMIUM, FLAGS, SIZES, World, make_world, pages, served, sign_in

LATENCY_MS, BYTES_PER_S = 400, 400_000 / 8
VISITS = 5
PAGES = ("sign-in", "subjects", "subject", "training-running", "training-ready", "account")
_TIMES = """() => new Promise((done) => new PerformanceObserver((list) => {
    const [page] = performance.getEntriesByType("navigation");
    const paint = list.getEntriesByName("first-contentful-paint")[0].startTime;
    done({ paint, server: page.responseStart - page.requestStart, bytes: page.transferSize });
}).observe({ type: "paint", buffered: true }))"""


def visit(browser: Browser, base: str, token: str, address: str, *, returns: bool) -> dict[str, float]:
    """The times of one visit. `returns`: with the styles in the cache, from another page."""
    context = browser.new_context(base_url=base, viewport={"width": SIZES["phone"][0], "height": SIZES["phone"][1]})
    page = context.new_page()
    if token:
        sign_in(page, token)
    if not returns:  # a session, and nothing else
        session = [one for one in context.cookies() if one["name"] == "imprint_session"]
        context.close()
        context = browser.new_context(base_url=base, viewport={"width": SIZES["phone"][0], "height": SIZES["phone"][1]})
        context.add_cookies(session)  # type: ignore[arg-type]
        page = context.new_page()
    network = context.new_cdp_session(page)
    network.send("Network.enable")
    slow = {"offline": False, "latency": LATENCY_MS, "downloadThroughput": BYTES_PER_S, "uploadThroughput": BYTES_PER_S}
    network.send("Network.emulateNetworkConditions", slow)
    page.goto(address, wait_until="commit")
    found: dict[str, float] = page.evaluate(_TIMES)
    context.close()
    return found


def measure(world: World, browser: Browser, base: str) -> list[dict[str, Any]]:
    rows = []
    for token, addresses in pages(world).items():
        for name in [name for name in PAGES if name in addresses]:
            row: dict[str, Any] = {"page": name}
            for kind, returns in (("first", False), ("again", True)):
                visits = [visit(browser, base, token, addresses[name], returns=returns) for _ in range(VISITS)]
                paints = [one["paint"] for one in visits]
                row |= {
                    f"{kind}_ms": round(statistics.median(paints)), f"{kind}_least_ms": round(min(paints)),
                    f"{kind}_server_ms": round(statistics.median(one["server"] for one in visits)),
                    f"{kind}_bytes": round(visits[0]["bytes"]),
                }  # fmt: skip
            rows.append(row)
            print(row)
    return rows


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="imprint-") as home:
        world = make_world(Path(home))
        with served(world.services) as base, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, chromium_sandbox=False)
            rows = measure(world, browser, base)
            browser.close()
        world.services.database.close()
        world.services.decoder.close()
    print(json.dumps({"latency_ms": LATENCY_MS, "kbit_per_s": 400, "rows": rows}))


if __name__ == "__main__":
    main()
