"""Script in what owners and clients of the broker send is only text in Flower, which operators read."""

from collections.abc import Iterator
from urllib.parse import quote, urlsplit

import httpx2
import pytest
from playwright.sync_api import Browser, Dialog

from cli.stack import Supervisor
from tests.browser.conftest import WAIT_MS
from tests.servers.process import ServerProcess
from tests.site import ROOT, Site, until

LOGIN = "operator:flower-password"
SCRIPTS = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "'><svg onload=alert(1)>",
    "{{ 98765 * 99991 }}",
    'line\nquote"backslash\\',
)
EVIL = " ".join(SCRIPTS)
HOST = f"evil@{SCRIPTS[1]}"  # a worker's name


@pytest.fixture
def flower(web_site: Site) -> Iterator[str]:
    """The address of Flower beside the site, which has heard of its workers."""
    stack = Supervisor(web_site.settings.model_copy(update={"flower_port": 0}))
    member = stack["flower"]
    process = ServerProcess(
        web_site.celery(*member.arguments), log=web_site.log("flower"), cwd=ROOT,
        env=web_site.surroundings(FLOWER_BASIC_AUTH=LOGIN),
    )  # fmt: skip
    url = str(stack.layout.flower_url)
    try:
        until(lambda: "io@test" in _asked(url, "/api/workers?status=true"), 90, "Flower hears a worker")
        yield url
    finally:
        process.end()


def _asked(url: str, path: str) -> str:
    name, _, password = LOGIN.partition(":")
    try:
        return httpx2.get(url + path, auth=(name, password), timeout=20, trust_env=False).text
    except httpx2.TransportError:
        return ""


def test_no_page_of_flower_runs_what_a_task_says(flower: str, web_site: Site, browser: Browser) -> None:
    web_site.grant(f"ada {SCRIPTS[0]}")
    images = web_site.pictures(f"ada {SCRIPTS[0]}", 5)
    request = {
        "owner_id": f"ada {SCRIPTS[0]}", "subject_id": f"rex {SCRIPTS[1]}", "trigger_word": f"sks {SCRIPTS[0]}",
        "images": [*images, "https://127.0.0.1/" + EVIL], "base_model": "sd15", "captions": {images[0]: EVIL},
    }  # fmt: skip
    # A request, one that is refused with a sentence, and the events of a client of the broker that means no good.
    for kwargs in (request, {"owner_id": EVIL}):
        web_site.application.send_task("imprint.train_lora", kwargs=kwargs, queue="io")
    with web_site.application.connection() as connection:
        told = {"uuid": "evil", "name": EVIL, "args": EVIL, "kwargs": EVIL, "exception": EVIL, "traceback": EVIL}
        with web_site.application.events.Dispatcher(connection, hostname=HOST) as dispatcher:
            for kind in ("worker-heartbeat", "task-received", "task-failed"):
                dispatcher.send(kind, **told)
    until(lambda: _asked(flower, "/api/tasks").count('"imprint.train_lora"') >= 2, 60, "both requests")
    until(lambda: _asked(flower, "/api/tasks").count("FAILURE") >= 2, 60, "one is refused, one failed")
    tasks = httpx2.get(f"{flower}/api/tasks", auth=tuple(LOGIN.split(":")), timeout=20, trust_env=False).json()
    assert SCRIPTS[0] in tasks["evil"]["args"], "it is there to be shown"

    ran: list[str] = []
    outside: list[str] = []

    def dismiss(dialog: Dialog) -> None:
        ran.append(dialog.message)
        dialog.dismiss()

    context = browser.new_context(http_credentials={"username": "operator", "password": LOGIN.partition(":")[2]})
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    page.on("dialog", dismiss)
    page.on("request", lambda request: outside.append(request.url))
    doors = [uuid for uuid, task in tasks.items() if uuid == "evil" or task["name"] == "imprint.train_lora"]
    try:
        for path in ("/tasks", "/workers", "/broker", f"/worker/{quote(HOST)}", *(f"/task/{uuid}" for uuid in doors)):
            page.goto(flower + path)
            if path == "/tasks":
                page.get_by_text("alert(1)").first.wait_for(state="attached")
            page.wait_for_load_state("networkidle")
            assert page.locator("[onerror], [onload], svg[onload]").count() == 0, path
            assert not [one for one in page.locator("script").all_text_contents() if one.startswith("alert")], path
            # Of ten digits: four of them stand in a task's id or a time now and then.
            assert str(98765 * 99991) not in page.content(), path
    finally:
        context.close()
    assert ran == []
    hosts = {urlsplit(address).netloc for address in outside if address.startswith("http")}
    assert hosts == {urlsplit(flower).netloc}
