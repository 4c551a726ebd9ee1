"""The page driven in a browser against real workers."""

import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect
from sqlmodel import select

from core.advice import ADVICE
from jobs import service
from jobs.owners import accounts
from jobs.subjects import subject_pictures, subject_settings
from storage.tables.pictures import StoredPicture
from tests.browser.conftest import PHONE, WAIT_MS, Visitor, check_accessible
from tests.site import MASCOT
from web.pages.render import number

pytestmark = pytest.mark.timeout(900)
expect.set_options(timeout=WAIT_MS)

FILES = sorted(MASCOT.glob("*.png"))
Shoot = Callable[[Page, str], None]
LONG = 100_000  # steps: it ends when it is cancelled


def png(size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, "white").save(out, "PNG")
    return out.getvalue()


def equip(visitor: Visitor, owner_id: str, pictures: int = 6, granted: int = 10_000) -> None:
    """Credits, and good pictures of `mascot` with settings."""
    if granted:
        visitor.site.grant(owner_id, granted)
    for file in FILES[:pictures]:
        subject_pictures.add(visitor.services, owner_id, "mascot", file.read_bytes())
    subject_settings.change(visitor.services, owner_id, "mascot", {"trigger_word": "imp", "base_model": "sd15"})


def begin(visitor: Visitor, owner_id: str, **more: object) -> str:
    """A training that was asked for elsewhere; its id."""
    pictures = [one.id for one in subject_pictures.list_pictures(visitor.services, owner_id, "mascot")]
    job_id: str = visitor.site.send(owner_id=owner_id, images=pictures, **more)["job_id"]
    return job_id


def id_of(page: Page) -> str:
    page.wait_for_url("**/trainings/**")
    return re.sub(r".*/trainings/|\?.*", "", page.url)


def test_from_pictures_to_a_file_and_again(visitor: Visitor, shoot: Shoot, tmp_path: Path) -> None:
    visitor.site.grant("ada", 10_000)
    page = visitor.open()
    visitor.sign_in_by_form(page, "ada")
    shoot(page, "subjects-empty")
    check_accessible(page)
    page.get_by_label("New subject").fill("mascot")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_text("No pictures yet")).to_be_visible()
    expect(page.get_by_role("button", name="Start training")).to_be_disabled()
    check_accessible(page)
    page.evaluate("window.same = true")  # gone if the page were loaded anew

    # Chosen files: good ones, one that is too small, and one that is no picture.
    (tmp_path / "small.png").write_bytes(png((120, 90)))
    (tmp_path / "notes.png").write_text("not a picture")
    page.locator("#files").set_input_files([*FILES[:5], tmp_path / "small.png", tmp_path / "notes.png"])
    expect(page.locator("#uploads li")).to_have_count(2)
    expect(page.locator("#uploads .bad").nth(0)).to_contain_text("too small: 120 by 90 pixels")
    expect(page.locator("#uploads .bad").nth(1)).not_to_be_empty()
    expect(page.locator("#pictures-head")).to_contain_text("5 good")
    expect(page.locator(".picture.bad .why")).to_contain_text("too small: 120 by 90 pixels")

    # Dropped ones.
    data = page.evaluate_handle(
        """async (bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
            return data;
        }""",
        list(FILES[5].read_bytes()),
    )
    page.dispatch_event("#upload", "drop", {"dataTransfer": data})
    expect(page.locator("#pictures-head")).to_contain_text("6 good")

    expect(page.locator("#price-sd15")).to_contain_text("60 credits")

    # A caption, and a picture taken away.
    first = page.locator(".picture").first
    first.locator("summary").click()
    first.get_by_label("Caption").fill("sks mascot on a meadow")
    del visitor.asked[:]
    first.get_by_role("button", name="Save caption").click()
    expect(page.locator("#notice")).to_contain_text("Caption saved")
    loads = [one for one in visitor.asked if re.search(r"/subjects/mascot(\?|$)", one)]
    assert len(loads) == 1, "the answer is the page: it is not loaded again"
    bad = page.locator(".picture.bad")
    bad.locator("summary").click()
    bad.get_by_role("button", name="Remove").click()
    expect(page.locator(".picture.bad")).to_have_count(0)
    kept = subject_pictures.list_pictures(visitor.services, "ada", "mascot")
    assert [one.caption for one in kept if one.caption] == ["sks mascot on a meadow"]

    # The price follows what is chosen, and is the one that is held.
    page.get_by_label("Trigger word").fill("sks mascot")
    page.get_by_text("Steps and resolution").click()
    page.get_by_role("textbox", name="Steps").fill("100")
    page.get_by_role("textbox", name="Steps").press("Tab")
    expect(page.locator("#price .sum")).to_contain_text("10 credits")
    page.get_by_label("Resolution").fill("65")
    page.get_by_label("Resolution").press("Tab")
    expect(page.locator("#price")).to_contain_text("Resolution must be a multiple of 64")
    expect(page.get_by_role("button", name="Start training")).to_be_disabled()
    page.get_by_label("Resolution").fill("64")
    page.get_by_label("Resolution").press("Tab")
    expect(page.locator("#price .sum")).to_contain_text("1 credit ·")
    assert page.evaluate("window.same") is True
    shoot(page, "subject")
    check_accessible(page)
    page.get_by_role("button", name="Start training").click()
    job_id = id_of(page)

    # Watched to its end, without a reload.
    page.evaluate("window.same = true")
    expect(page.locator("#outcome")).to_contain_text("Your LoRA is ready")
    expect(page.locator("#charged")).to_have_text("1 credit")
    expect(page.locator(".stages .done")).to_have_count(5)
    expect(page.locator("svg.chart polyline.smooth")).to_have_count(1)
    expect(page.locator("#loss-words")).to_contain_text("Loss over 100 steps")
    expect(page.locator("#announce")).to_have_text("Ready")
    expect(page.locator("#notice")).to_be_empty()
    expect(page).to_have_title(re.compile("^Ready: mascot"))
    assert page.evaluate("window.same") is True
    shoot(page, "training-ready")
    check_accessible(page)

    view = visitor.site.view(job_id)
    assert (view["spec"]["trigger_word"], view["spec"]["resolution"], view["total_steps"]) == ("sks mascot", 64, 100)
    page.get_by_role("button", name="Copy: Trigger word").click()
    expect(page.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "sks mascot"
    with page.expect_download() as coming:
        page.locator("#download").click()  # in the form of the training
    assert hashlib.sha256(coming.value.path().read_bytes()).hexdigest() == view["lora"]["sha256"]

    page.get_by_role("button", name="Train again").click()
    page.wait_for_url(lambda url: "/trainings/" in url and job_id not in url)
    again = id_of(page)
    service.cancel(visitor.services, again)
    expect(page.locator("#outcome")).to_contain_text("was cancelled")
    assert visitor.site.view(again)["spec"]["seed"] == view["spec"]["seed"]


# Headless Chromium shows no notices, and takes every tab for the one that is seen.
_NOTICES = """
globalThis.away = false;
globalThis.shown = [];
Object.defineProperty(document, "hidden", { get: () => away });
globalThis.Notification = class {
  static permission = "granted";
  static async requestPermission() { return "granted"; }
  constructor(title, options) { shown.push(options.tag); }
};
"""


def test_cancel_says_what_it_costs(visitor: Visitor, shoot: Shoot) -> None:
    equip(visitor, "carl")
    job_id = begin(visitor, "carl", max_steps=LONG, resolution=256)
    page = visitor.open(size=PHONE, scheme="dark")
    page.add_init_script(_NOTICES)
    visitor.sign_in(page, "carl")
    page.goto("/account")
    page.get_by_role("button", name="Notices of this browser: off").click()
    expect(page.get_by_role("button", name="Notices of this browser: on")).to_be_visible()
    page.goto(f"/trainings/{job_id}")
    before = None
    for _ in range(2):  # the step moves on by itself
        expect(page.locator("#step")).not_to_have_text(before or re.compile(r"^0\b"))
        before = page.locator("#step").text_content()
    visitor.site.wait(job_id, lambda view: view["step"] >= 50, timeout_s=300)
    page.get_by_text("Cancel this training").click()
    expect(page.locator("#next")).to_contain_text(re.compile(r"done cost \d+ credit"))
    expect(page.locator("[aria-current=step]")).to_contain_text("Train")
    shoot(page, "training-running-phone-dark")
    check_accessible(page)
    page.evaluate("away = true")
    page.get_by_role("button", name="Cancel the training").click()
    expect(page.locator("#notice")).to_contain_text("Training cancelled")
    page.wait_for_function("shown.length")
    assert page.evaluate("shown") == [f"/trainings/{job_id}"], "one notice of the browser"
    view = visitor.site.view(job_id)
    assert view["status"] == "cancelled"
    assert view["credits"]["charged"] > 0
    expect(page.locator("#refund")).to_contain_text(f"{number(view['credits']['refunded'])} credits came back")
    check_accessible(page)
    page.goto("/account")
    expect(page.get_by_role("region", name="Entries")).to_contain_text("Charged for a training")
    expect(page.locator("#main")).to_contain_text(number(accounts.balance(visitor.services, "carl").available))
    check_accessible(page)


def test_a_failure_in_plain_words(visitor: Visitor, shoot: Shoot) -> None:
    """Pictures that are too small are named before the start; a training whose pictures were measured wrongly fails."""
    equip(visitor, "fay")
    page = visitor.open()
    visitor.sign_in(page, "fay")
    page.goto("/subjects/mascot")
    page.get_by_text("Steps and resolution").click()
    page.get_by_label("Resolution").fill("2048")
    page.get_by_role("textbox", name="Steps").fill("1")
    page.get_by_role("textbox", name="Steps").press("Tab")
    expect(page.locator("#price .sum")).to_contain_text("2 credits")
    expect(page.locator("#start-why")).to_be_visible()
    expect(page.get_by_role("button", name="Start training")).to_be_disabled()
    shoot(page, "training-unfit")
    check_accessible(page)
    with visitor.services.database.writing() as session:
        for stored in session.exec(select(StoredPicture).where(StoredPicture.owner_id == "fay")):
            assert stored.report is not None
            stored.report = stored.report.model_copy(update={"width": 4096, "height": 4096})
    job_id = begin(visitor, "fay", resolution=2048, max_steps=1)
    page.goto(f"/trainings/{job_id}")
    outcome = page.locator("#outcome")
    expect(outcome).to_contain_text(ADVICE["too_few_images"].what)
    expect(outcome).to_contain_text(ADVICE["too_few_images"].do)
    expect(outcome).to_contain_text("Nothing was charged: 2 credits came back")
    expect(page.locator("#left-out li")).to_have_count(6)
    expect(page.locator("#left-out li").first).to_contain_text("too small: ")
    assert accounts.balance(visitor.services, "fay").available == 10_000
    assert visitor.site.view(job_id)["failure"]["code"] == "too_few_images"
    shoot(page, "training-failed")
    check_accessible(page)
    # The same would fail again: what is offered can succeed.
    expect(page.get_by_role("button", name="Train again")).to_have_count(0)
    page.get_by_role("link", name=re.compile(r"Train at \d+ pixels")).click()
    expect(page.get_by_role("button", name="Start training")).to_be_enabled()


def test_train_automatically_says_why_not(visitor: Visitor, shoot: Shoot) -> None:
    equip(visitor, "tess", pictures=4, granted=0)
    page = visitor.open(size=PHONE)
    visitor.sign_in(page, "tess")
    page.goto("/subjects/mascot")
    switch, why = page.get_by_role("switch", name="Train automatically"), page.locator("#automatic-why")
    expect(switch).to_be_disabled()
    expect(why).to_contain_text("needs 5 good pictures; there are 4")
    expect(why).to_contain_text("It costs 50 credits; you have 0")
    shoot(page, "toggle-disabled-phone")
    check_accessible(page)
    page.locator("#files").set_input_files(FILES[4])
    expect(why).to_have_text("It costs 50 credits; you have 0.")
    visitor.site.grant("tess", 60)
    page.reload()
    expect(switch).to_be_enabled()
    expect(page.locator("#automatic-about")).to_contain_text(
        re.compile(r"50 credits · (about \d+ (s|min)|time unknown here)")
    )
    switch.click()
    expect(switch).to_be_checked()
    assert subject_settings.get(visitor.services, "tess", "mascot").train_automatically is True
    switch.click()
    expect(switch).not_to_be_checked()
    assert subject_settings.get(visitor.services, "tess", "mascot").train_automatically is False


def test_by_keyboard_alone(visitor: Visitor) -> None:
    """From the sign-in to a cancelled training with Tab, Enter, Space, arrows; what has the focus always shows it."""
    visitor.site.grant("kim", 10_000)
    page = visitor.open()
    visitor.sign_in_by_form(page, "kim")

    def reach(selector: str) -> None:
        page.locator("body").evaluate("() => document.activeElement.blur()")
        for _ in range(80):
            page.keyboard.press("Tab")
            at = page.evaluate(
                """(wanted) => {
                    const at = document.activeElement;
                    const style = getComputedStyle(at.closest(".option") ?? at);
                    return [at.matches(wanted), at === document.body || style.outlineStyle !== "none", at.outerHTML];
                }""",
                selector,
            )
            assert at[1], f"the focus does not show on {at[2][:200]}"
            if at[0]:
                return
        pytest.fail(f"Tab does not reach {selector}")

    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    reach("#name")
    page.keyboard.type("mascot")
    page.keyboard.press("Enter")
    page.wait_for_url("**/subjects/mascot")
    reach("#files")
    with page.expect_file_chooser() as choosing:
        page.keyboard.press("Space")
    choosing.value.set_files(FILES[:5])
    expect(page.locator("#pictures-head")).to_contain_text("5 good")
    reach("#trigger_word")
    page.keyboard.type("imp")
    reach("[name=base_model]:checked")
    page.keyboard.press("Tab")
    expect(page.locator("#other-bases")).to_be_focused()
    page.keyboard.press("Enter")
    reach("[name=base_model]:checked")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#price .sum")).to_contain_text("200 credits")  # sdxl
    page.keyboard.press("ArrowUp")
    expect(page.locator("#price .sum")).to_contain_text("50 credits")
    reach("form[data-quote] summary:not(#other-bases)")
    page.keyboard.press("Space")
    reach("#resolution")
    page.keyboard.type("64")
    reach("#max_steps")
    page.keyboard.type(str(LONG))
    reach("#start")
    expect(page.locator("#price .sum")).to_contain_text("157 credits")
    reach("#start")
    page.keyboard.press("Enter")
    job_id = id_of(page)
    reach("#cancel-open")
    page.keyboard.press("Enter")
    reach("#cancel")
    page.keyboard.press("Enter")
    expect(page.locator("#outcome")).to_contain_text("was cancelled")
    assert visitor.site.view(job_id)["status"] == "cancelled"
    reach("#sign-out")
    page.keyboard.press("Enter")
    page.wait_for_url("**/sign-in")


def test_without_a_script(visitor: Visitor) -> None:
    visitor.site.grant("nora", 10_000)
    page = visitor.open(java_script_enabled=False)
    visitor.sign_in(page, "nora")
    page.goto("/subjects/mascot")
    page.locator("#files").set_input_files(FILES[:5])
    page.get_by_role("button", name="Upload").click()
    expect(page.locator("#notice")).to_contain_text("Pictures stored")
    page.get_by_label("Trigger word").fill("imp")
    page.get_by_role("button", name="Save settings").click()
    expect(page.locator("#notice")).to_contain_text("Settings saved")
    page.get_by_role("switch").click()
    expect(page.get_by_role("switch")).to_be_checked()
    page.get_by_text("Steps and resolution").click()
    page.get_by_role("textbox", name="Steps").fill(str(LONG))
    page.get_by_role("button", name="Show the price").click()
    expect(page.locator("#price .sum")).to_contain_text(number(10_000))
    page.get_by_role("button", name="Start training").click()
    job_id = id_of(page)
    page.get_by_text("Cancel this training").click()
    page.get_by_role("button", name="Cancel the training").click()
    expect(page.locator("#outcome")).to_contain_text("was cancelled")
    assert visitor.site.view(job_id)["status"] == "cancelled"
    page.goto("/trainings/job_of_somebody_else")
    expect(page.get_by_role("heading", name="Not found")).to_be_visible()
    check = visitor.open()
    visitor.sign_in(check, "nora")
    answer = check.goto("/operators")
    assert answer is not None
    assert answer.status == 403
    check_accessible(check)
