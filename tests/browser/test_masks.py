"""A mask drawn on a picture, with a mouse and by keyboard, which a real worker then trains with."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect
from sqlmodel import col, select

from jobs.subjects import picture_masks, subject_pictures
from storage.tables.jobs import JobPicture
from tests.browser.conftest import PHONE, WAIT_MS, Visitor, check_accessible
from tests.browser.test_page import equip, id_of

pytestmark = pytest.mark.timeout(900)
expect.set_options(timeout=WAIT_MS)

Shoot = Callable[[Page, str], None]


def lightness(visitor: Visitor, mask_id: str) -> Image.Image:
    """The stored mask."""
    return Image.open(
        io.BytesIO(subject_pictures.large(visitor.services, "mia", "mascot", mask_id)), formats=["JPEG"]
    ).convert("L")


def test_drawn_saved_and_trained_with(visitor: Visitor, shoot: Shoot, tmp_path: Path) -> None:
    equip(visitor, "mia")
    first, second = [one.id for one in subject_pictures.list_pictures(visitor.services, "mia", "mascot")][:2]
    page = visitor.open()
    visitor.sign_in(page, "mia")

    # With the mouse: a line across the middle counts, and what is undone does not.
    page.goto(f"/subjects/mascot/images/{first}/edit")
    canvas = page.locator("#mask-canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    page.get_by_role("button", name="Save the mask").click()
    expect(page.locator("#mask-fault")).to_contain_text("Nothing is painted yet")
    for height in (0.5, 0.1):
        page.mouse.move(box["x"] + 2, box["y"] + height * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] - 2, box["y"] + height * box["height"], steps=4)
        page.mouse.up()
    page.get_by_role("button", name="Undo", exact=True).click()
    page.get_by_role("button", name="Save the mask").click()
    expect(page.locator("#notice")).to_contain_text("Mask saved")
    mask_id = picture_masks.find(visitor.services, "mia", "mascot", first)
    assert mask_id
    drawn = lightness(visitor, mask_id)
    width, height_px = drawn.size
    middle, top = drawn.getpixel((width // 2, height_px // 2)), drawn.getpixel((width // 2, height_px // 10))
    assert (middle, top) == (255, 0)
    shoot(page, "mask")
    check_accessible(page)

    # By keyboard, on a phone in the dark: the centre counts, and nothing far from it.
    phone = visitor.open(size=PHONE, scheme="dark")
    visitor.sign_in(phone, "mia")
    phone.goto(f"/subjects/mascot/images/{second}/edit")
    canvas = phone.locator("#mask-canvas")
    canvas.focus()
    for key in (" ", "ArrowLeft", " ", "Shift+ArrowDown", "e", " ", "b", "+"):
        canvas.press("Space" if key == " " else key)
    assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shoot(phone, "mask-phone-dark")
    phone.get_by_role("button", name="Save the mask").press("Enter")
    expect(phone.locator("#notice")).to_contain_text("Mask saved")
    other = picture_masks.find(visitor.services, "mia", "mascot", second)
    assert other
    drawn = lightness(visitor, other)
    assert drawn.getpixel((drawn.width // 2, drawn.height // 2)) == 255
    assert drawn.getpixel((5, 5)) == 0

    # The form of the subject trains with both.
    page.goto("/subjects/mascot")
    page.get_by_text("Steps and resolution").click() if not page.get_by_label("Resolution").is_visible() else None
    page.get_by_role("textbox", name="Steps").fill("10")
    page.get_by_label("Resolution").fill("64")
    page.get_by_label("Resolution").press("Tab")
    expect(page.locator("#price .sum")).to_contain_text("1 credit ·")
    page.get_by_role("button", name="Start training").click()
    job_id = id_of(page)
    view = visitor.site.wait(job_id)
    assert (view["status"], view["spec"]["objective"]["masked"]) == ("ready", True)
    with visitor.services.database.reading() as session:
        rows = session.exec(select(JobPicture).where(col(JobPicture.job_id) == job_id)).all()
        assert {row.reference: row.mask for row in rows if row.mask} == {first: mask_id, second: other}

    # Without a script: from a file, and removed again.
    plain = visitor.open(java_script_enabled=False)
    visitor.sign_in(plain, "mia")
    plain.goto(f"/subjects/mascot/images/{first}/edit")
    drawn.resize((width, height_px)).save(tmp_path / "mask.png")
    plain.get_by_label("Mask from a file").set_input_files(tmp_path / "mask.png")
    plain.get_by_role("button", name="Upload the mask").click()
    expect(plain.locator("#notice")).to_contain_text("Mask saved")
    plain.get_by_role("button", name="Remove the mask").click()
    expect(plain.locator("#notice")).to_contain_text("Mask removed")
    assert re.search(r"/subjects/mascot/images/[a-z0-9_]+/edit", plain.url)
    assert picture_masks.find(visitor.services, "mia", "mascot", first) is None
