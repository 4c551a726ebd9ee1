"""The page when something comes between: lost connections, an ended session, Back, a second tab, Enter in a field."""

import os
import re
import tempfile
import time
import zipfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect
from starlette.types import Receive, Scope, Send

from jobs import service
from jobs.owners import sessions
from jobs.subjects import subject_pictures, subject_settings
from tests.browser.conftest import PHONE, WAIT_MS, Visitor, check_accessible
from tests.browser.test_page import LONG, begin, equip, id_of
from tests.site import drawing
from tools.screenshots import serving
from web.app import create_app
from web.partial_files import PIECE_BYTES

pytestmark = pytest.mark.timeout(900)
expect.set_options(timeout=WAIT_MS)

Shoot = Callable[[Page, str], None]


def test_uploads_survive_dropped_connections(visitor: Visitor, shoot: Shoot, tmp_path: Path) -> None:
    """Each file is sent until it is stored, once; and the page is not loaded for each."""
    files = [drawing(tmp_path / f"{number:02}.png", number, 512) for number in range(9)]
    page = visitor.open(size=PHONE)
    visitor.sign_in(page, "uma")
    page.goto("/subjects/mascot")
    attempts: dict[str, int] = {}

    def interrupt(route: Route) -> None:
        found = re.search(rb'filename="([^"]+)"', route.request.post_data_buffer or b"")
        name = found[1].decode() if found else ""
        attempts[name] = attempts.get(name, 0) + 1
        if name == "03.png" and attempts[name] == 1:
            route.abort("connectionreset")
        elif name == "05.png" and attempts[name] == 1:
            route.continue_()  # it is stored, but its answer is lost below
        elif name == "07.png" and attempts[name] == 1:
            route.fulfill(status=503, content_type="application/json", body="{}")
        else:
            route.continue_()

    page.route("**/subjects/mascot/images", interrupt)
    del visitor.asked[:]
    begun = time.monotonic()
    page.locator("#files").set_input_files(files)
    expect(page.locator("#pictures-head")).to_contain_text("9 good")
    expect(page.locator("#uploads li")).to_have_count(0)
    assert (attempts["03.png"], attempts["07.png"], attempts["00.png"]) == (2, 2, 1)
    stored = subject_pictures.list_pictures(visitor.services, "uma", "mascot")
    assert sorted(one.name or "" for one in stored) == [file.name for file in files]
    pages = [one for one in visitor.asked if re.search(r"/subjects/mascot(\?|$)", one)]
    print(f"{len(visitor.asked)} requests for {len(files)} files, {len(pages)} of them for the page")
    assert len(pages) <= 2 + (time.monotonic() - begun) / 5, "at the first, at the last, and every five seconds between"
    first = page.locator(".picture img").first
    first.scroll_into_view_if_needed()
    assert first.evaluate("one => one.decode().then(() => one.naturalWidth)") > 0
    shoot(page, "uploaded-phone")

    # What fails for good can be sent again, all at once.
    page.unroute("**/subjects/mascot/images")
    page.route("**/subjects/mascot/images", lambda route: route.abort("connectionreset"))
    page.clock.install()
    more = [drawing(tmp_path / f"{number}.png", number, 512) for number in (20, 21)]
    page.locator("#files").set_input_files(more)
    for _ in range(16):
        expect(page.locator("#uploads")).to_contain_text(re.compile("Trying again|Retry"))
        if page.locator("[data-retry]").count() == 2:
            break
        page.clock.fast_forward(31_000)
    expect(page.locator("[data-retry]")).to_have_count(2)
    shoot(page, "uploads-failed-phone")
    check_accessible(page)
    page.unroute("**/subjects/mascot/images")
    page.get_by_role("button", name="Retry all 2").click()
    expect(page.locator("#pictures-head")).to_contain_text("11 good")
    visitor.errors[:] = [one for one in visitor.errors if "ERR_CONNECTION_RESET" not in one]


def archive_of_pictures(folder: Path) -> Path:
    """Three pictures in an archive of three pieces."""
    archive = folder / "pictures.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:
        for number in range(3):
            name = f"{number}.png"
            out.write(drawing(folder / name, number, 512), name)
        out.writestr("notes.bin", os.urandom(2 * PIECE_BYTES))
    return archive


def test_a_large_file_goes_on_after_a_lost_connection_and_a_reload(visitor: Visitor, tmp_path: Path) -> None:
    """No piece that has arrived is sent again."""
    archive = archive_of_pictures(tmp_path)
    page = visitor.open()
    visitor.sign_in(page, "lars")
    page.goto("/subjects/mascot")
    offsets: list[tuple[int, int]] = []

    def lose_all_after(pieces: int) -> Callable[[Route], None]:
        def lose(route: Route) -> None:
            size = len(route.request.post_data_buffer or b"")
            if size and sum(size > 0 for _, size in offsets) >= pieces:
                route.abort("connectionreset")
                return
            offsets.append((int(re.search(r"offset=(\d+)", route.request.url)[1]), size))  # type: ignore[index]
            route.continue_()

        return lose

    page.route("**/subjects/mascot/uploads?*", lose_all_after(1))
    page.locator("#files").set_input_files(archive)
    expect(page.locator("#uploads")).to_contain_text("Trying again")
    page.unroute("**/subjects/mascot/uploads?*")
    page.reload()
    page.route("**/subjects/mascot/uploads?*", lose_all_after(9))
    page.locator("#files").set_input_files(archive)
    expect(page.locator("#pictures-head")).to_contain_text("3 good")
    sent = [(offset, size) for offset, size in offsets if size]
    assert [offset for offset, _ in sent] == [0, PIECE_BYTES, 2 * PIECE_BYTES]
    assert sum(size for _, size in sent) == archive.stat().st_size
    visitor.errors[:] = [one for one in visitor.errors if "ERR_CONNECTION_RESET" not in one]


def test_a_large_file_arrives_behind_a_proxy_that_alternates_between_machines(
    visitor: Visitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each machine keeps its pieces in a temporary folder of its own, so the file goes whole."""
    archive = archive_of_pictures(tmp_path)
    machines = []
    for number in range(2):
        folder = tmp_path / f"machine{number}"
        folder.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(folder))
            machines.append(create_app(visitor.services))
    turn, asked = count(), list[str]()

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        is_upload = scope["type"] == "http" and scope["method"] == "POST" and "/subjects/mascot/" in scope["path"]
        if is_upload:
            asked.append(scope["path"].rpartition("/")[2])
        await machines[next(turn) % 2 if is_upload else 0](scope, receive, send)

    with serving(proxy, visitor.services, machines[0].state.streams) as base:
        page = visitor.open(base_url=base)
        visitor.sign_in_by_form(page, "alma")
        page.goto("/subjects/mascot")
        page.locator("#files").set_input_files(archive)
        expect(page.locator("#pictures-head")).to_contain_text("3 good")
        page.context.close()
    assert asked == ["uploads", "uploads", "uploads", "images"]
    visitor.asked[:] = [one for one in visitor.asked if not one.startswith(base)]


def test_a_lost_connection_is_seen(visitor: Visitor, shoot: Shoot) -> None:
    equip(visitor, "lou")
    job_id = begin(visitor, "lou", max_steps=LONG, resolution=64)
    visitor.site.wait(job_id, lambda view: view["step"] > 0)
    page = visitor.open(size=PHONE, scheme="dark")
    visitor.sign_in(page, "lou")
    page.goto(f"/trainings/{job_id}")
    expect(page.locator("#step")).not_to_have_text(re.compile(r"^0\b"))
    expect(page.locator("#connection")).to_be_hidden()
    visitor.site.kill("web")
    expect(page.locator("#connection")).to_contain_text("The connection was lost at")
    shoot(page, "connection-lost-phone-dark")
    check_accessible(page)
    before = page.locator("#step").text_content() or ""
    visitor.site.start("web")
    expect(page.locator("#connection")).to_be_hidden()
    expect(page.locator("#step")).not_to_have_text(before)
    visitor.errors[:] = [one for one in visitor.errors if "ERR_" not in one]


def test_an_ended_session_keeps_what_was_typed(visitor: Visitor, shoot: Shoot) -> None:
    equip(visitor, "sue")
    page = visitor.open()
    visitor.sign_in(page, "sue")
    page.goto("/subjects/mascot")
    page.get_by_label("Trigger word").fill("a long word")
    sessions.end_all(visitor.services, "sue")
    page.get_by_role("button", name="Save settings").click()
    expect(page.locator("#connection")).to_contain_text("Your session has ended")
    expect(page.get_by_label("Trigger word")).to_have_value("a long word")
    shoot(page, "session-ended")
    check_accessible(page)
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Sign in again").click()
    other = opened.value
    expect(other).to_have_url(re.compile("/sign-in"))
    visitor.sign_in(other, "sue")
    other.goto("/signed-in")
    expect(other.get_by_role("heading", name="You are signed in")).to_be_visible()
    shoot(other, "signed-in")
    other.close()
    page.bring_to_front()
    page.get_by_role("button", name="Save settings").click()
    expect(page.locator("#notice")).to_contain_text("Settings saved")
    expect(page.locator("#connection")).to_be_hidden()
    assert subject_settings.get(visitor.services, "sue", "mascot").trigger_word == "a long word"


def test_enter_back_and_two_tabs(visitor: Visitor, shoot: Shoot) -> None:
    equip(visitor, "ben")
    page = visitor.open()
    visitor.sign_in(page, "ben")
    page.goto("/subjects/mascot")
    page.evaluate("window.same = true")
    page.get_by_label("Trigger word").fill("imp two")
    page.get_by_text("Steps and resolution").click()
    page.get_by_label("Resolution").fill("64")
    page.get_by_role("textbox", name="Steps").fill(str(LONG))
    page.get_by_role("textbox", name="Steps").press("Enter")  # asks for the price, and throws nothing away
    expect(page.locator("#price .sum")).to_contain_text("157 credits")
    assert page.evaluate("window.same") is True
    expect(page.get_by_label("Trigger word")).to_have_value("imp two")
    other = page.context.new_page()
    other.goto("/subjects/mascot")
    page.get_by_role("button", name="Start training").click()
    job_id = id_of(page)

    page.go_back()  # the form has what was started, and starts it once
    expect(page.get_by_role("textbox", name="Steps")).to_have_value(str(LONG))
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("#notice, #main")).to_contain_text(["A second one is charged too"] * 2)
    shoot(page, "second-training")
    check_accessible(page)
    page.get_by_role("link", name="See the one that runs").click()
    assert id_of(page) == job_id

    other.get_by_label("Trigger word").fill("imp three")  # opened before the training was started
    other.get_by_role("button", name="Start training").click()
    expect(other.locator("#notice")).to_contain_text("A second one is charged too")
    assert len(service.jobs(visitor.services, owner_id="ben")) == 1
    other.get_by_role("button", name="Start another").click()
    assert id_of(other) != job_id
    assert len(service.jobs(visitor.services, owner_id="ben")) == 2
