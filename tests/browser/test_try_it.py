""" "Try it" on the page of a ready training, in a browser, with pictures that a real worker draws."""

import hashlib
import io
import re
from collections.abc import Callable, Iterator

import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from jobs.drawings import drawings
from jobs.subjects import subject_pictures
from tests.browser.conftest import DESKTOP, PHONE, WAIT_MS, Visitor, check_accessible
from tests.site import Site
from web.pages.render import number

pytestmark = pytest.mark.timeout(900)
expect.set_options(timeout=WAIT_MS)

Shoot = Callable[[Page, str], None]


SAMPLED = {
    "max_steps": 20, "keep_checkpoints": True, "checkpoint_every": 3,
    "validation": {"previews": ["imp on a beach"], "every_epochs": 3},
}  # fmt: skip


@pytest.fixture(scope="module")
def job_id(web_site: Site) -> Iterator[str]:
    """A ready training of Tia's, and a worker that draws."""
    web_site.start("draw")
    web_site.grant("tia")
    found: str = web_site.wait(web_site.send(owner_id="tia", **SAMPLED)["job_id"])["job_id"]
    yield found
    if "draw" in web_site.processes:
        web_site.kill("draw")


def test_draw_compare_and_cancel(visitor: Visitor, job_id: str, shoot: Shoot) -> None:
    page = visitor.open()
    visitor.sign_in(page, "tia")
    page.goto(f"/trainings/{job_id}")
    page.evaluate("window.same = true")  # gone if the page were loaded anew
    price = page.locator("#price .sum")
    expect(price).to_have_text("1 credit")
    page.get_by_label("What to draw").fill("on a beach")
    page.get_by_label("Strength").fill("0.8")
    expect(page.locator("output")).to_have_text("0.8")
    page.get_by_role("textbox", name="Seed").fill("7")
    page.get_by_label("Pictures", exact=True).select_option("2")
    page.get_by_label("Without the LoRA too").check()
    expect(page.locator("#price")).to_contain_text("64 by 64 pixels, 25 steps each")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#notice")).to_contain_text("Drawing started")
    newest = page.locator("#drawings article").first
    expect(newest).to_contain_text("imp, on a beach")
    expect(newest.locator(".badge")).to_have_text("Ready")
    expect(newest.locator("figcaption")).to_have_text(
        ["With the LoRA · seed 7", "Without · seed 7", "With the LoRA · seed 8", "Without · seed 8"]
    )
    expect(newest).to_contain_text("strength 0.8 · seed 7 · 64 by 64")
    expect(newest).to_contain_text("1 credit charged")
    assert newest.locator("img").first.evaluate("one => one.decode().then(() => one.naturalWidth)") == 64
    boxes = [one.bounding_box() for one in newest.locator("img").all()[:2]]
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert boxes[0]["y"] == boxes[1]["y"], "the two are beside each other"
    expect(page.locator("#announce")).to_have_text("Ready. Drawing: Ready")

    # What was typed stays, and the same form draws again: another drawing, not the same request once more.
    expect(page.get_by_label("What to draw")).to_have_value("on a beach")
    page.get_by_label("Pictures", exact=True).select_option("1")
    page.get_by_label("Without the LoRA too").uncheck()
    page.get_by_label("What to draw").fill("in the snow, imp")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#drawings article")).to_have_count(2)
    expect(newest).to_contain_text("in the snow, imp")
    expect(newest.locator(".badge")).to_have_text("Ready")
    expect(newest.locator("img")).to_have_count(1)

    # One that waits, since no worker draws, is cancelled and costs nothing.
    visitor.site.kill("draw")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(newest.locator(".badge")).to_have_text("Waiting")
    expect(newest).to_contain_text("It starts when a worker is free.")
    shoot(page, "try-it-waiting")
    page.get_by_role("button", name="Cancel the drawing: in the snow, imp").click()
    expect(newest.locator(".badge")).to_have_text("Cancelled")
    expect(newest).to_contain_text("0 credits charged")
    visitor.site.start("draw")
    assert page.evaluate("window.same") is True

    # A refusal says what is wrong, and nothing that was typed is lost.
    page.get_by_role("textbox", name="Seed").fill("seven")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#notice")).to_contain_text("must be a whole number")
    expect(page.get_by_label("What to draw")).to_have_value("in the snow, imp")

    page.goto("/account")
    expect(page.get_by_role("region", name="Entries")).to_contain_text("Charged for a drawing")
    page.get_by_role("link", name=re.compile("^drawing draw_")).first.click()
    page.wait_for_url(re.compile(f"/trainings/{job_id}#draw_"))


def test_two_trainings_are_compared(visitor: Visitor, job_id: str, shoot: Shoot) -> None:
    """What differs in the recipe, both losses and curves, and the last sample of each, as the workers left them."""
    pictures = [one.id for one in subject_pictures.list_pictures(visitor.services, "tia", "mascot")]
    sent = visitor.site.send(owner_id="tia", images=pictures, rank=8, adapter={"targets": "all"}, **SAMPLED)
    after, before = visitor.site.wait(sent["job_id"]), visitor.site.view(job_id)
    page = visitor.open(size=PHONE)
    visitor.sign_in(page, "tia")
    page.goto(f"/trainings/{after['job_id']}")
    expect(page.locator("#changed li")).to_have_text(["Rank: 4 → 8", "Layers with a LoRA: attention → all"])
    page.get_by_role("link", name="Compare both").click()
    rows = page.locator(".pairs tbody tr")
    expect(page.locator(".pairs .differs")).to_have_text([re.compile("Rank.*48"), re.compile("Layers.*attentionall")])
    losses = [number(one["loss"], ".4f") for one in (before, after)]
    assert losses[0] != losses[1]
    assert (
        rows.filter(has=page.get_by_role("rowheader", name="loss", exact=True)).locator("td").all_inner_texts()
        == losses
    )
    curves = [line.get_attribute("points") for line in page.locator("svg.chart polyline").all()]
    assert len(curves) == 2
    assert all(curves)
    assert curves[0] != curves[1]
    samples = page.locator(".compare img")
    expect(samples).to_have_count(2)
    for sample, job in zip(samples.all(), (before, after), strict=True):
        assert f"/trainings/{job['job_id']}/previews/" in (sample.get_attribute("src") or "")
        assert sample.evaluate("one => one.decode().then(() => one.naturalWidth)") == 64
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    shoot(page, "compare-phone")
    page.goto(f"/trainings/{job_id}/compare?with={after['job_id']}")  # the other way round
    expect(page.locator(".pairs .differs").first).to_have_text(re.compile("Rank.*84"))


def test_another_checkpoint_is_delivered(visitor: Visitor, job_id: str, shoot: Shoot) -> None:
    """Chosen by its sample, downloaded and drawn with; and the last one again."""
    page = visitor.open(size=PHONE, scheme="dark")
    visitor.sign_in(page, "tia")
    page.goto(f"/trainings/{job_id}")
    last = visitor.site.view(job_id)["lora"]["sha256"]
    first = page.locator(".checkpoints li:not(.delivered)").first
    first.locator("img").scroll_into_view_if_needed()
    assert first.locator("img").evaluate("one => one.decode().then(() => one.naturalWidth)") == 64
    step = re.findall(r"Step (\d+)", first.inner_text())[0]

    def downloaded(link: Locator) -> str:
        with page.expect_download() as coming:
            link.click()
        return hashlib.sha256(coming.value.path().read_bytes()).hexdigest()

    earlier = downloaded(first.locator("a[download]"))
    assert (downloaded(page.locator("#download")), earlier != last) == (last, True)
    page.locator(f"#deliver-{step}").click()
    expect(page.locator("#notice")).to_have_text("Downloads and drawings use this checkpoint now.")
    expect(page.locator(".delivered")).to_contain_text(re.compile(rf"Step {step}\s+Delivered"))
    shoot(page, "checkpoints-phone-dark")
    assert downloaded(page.locator("#download")) == earlier == visitor.site.view(job_id)["lora"]["sha256"]
    page.locator("#deliver-20").click()
    expect(page.locator(".delivered")).to_contain_text("Step 20")
    assert downloaded(page.locator("#download")) == last


def test_at_two_sizes_in_light_and_dark(visitor: Visitor, job_id: str, shoot: Shoot) -> None:
    ask = {"owner_id": "tia", "job_id": job_id, "prompt": "on a beach", "compare": True, "seed": 1}
    made = drawings.submit(visitor.services, ask)
    page = visitor.open()
    visitor.sign_in(page, "tia")
    page.goto(f"/trainings/{job_id}")
    expect(page.locator(f"#{made.drawing_id} img")).to_have_count(2)
    for size, width in ((PHONE, 390), (DESKTOP, 1280)):
        page.set_viewport_size(size)  # type: ignore[arg-type]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            shoot(page, f"try-it-{width}-{scheme}")
    check_accessible(page)
    other = visitor.open()
    visitor.sign_in(other, "tia", "read")
    other.goto(f"/trainings/{job_id}")
    expect(other.locator(f"#{made.drawing_id} img")).to_have_count(2)
    expect(other.locator("#draw-form")).to_have_count(0)  # a token that may only look


def test_without_a_script(visitor: Visitor, job_id: str) -> None:
    page = visitor.open(java_script_enabled=False)
    visitor.sign_in(page, "tia")
    page.goto(f"/trainings/{job_id}")
    page.get_by_label("What to draw").fill("on a hill")
    page.get_by_role("textbox", name="Seed").fill("5")
    page.get_by_label("Without the LoRA too").check()
    page.get_by_role("button", name="Show the price").click()
    expect(page.get_by_label("What to draw")).to_have_value("on a hill")
    expect(page.get_by_role("textbox", name="Seed")).to_have_value("5")
    expect(page.get_by_label("Without the LoRA too")).to_be_checked()
    page.get_by_role("button", name="Draw", exact=True).click()
    newest = page.locator("#drawings article").first
    expect(newest).to_contain_text("imp, on a hill")
    expect(newest.locator("img")).to_have_count(2)  # the page loads itself again while it waits
    [view, *_] = drawings.of_training(visitor.services, job_id, "tia")
    png = drawings.picture(visitor.services, view.drawing_id, 0, "tia")
    assert Image.open(io.BytesIO(png)).size == (64, 64)
