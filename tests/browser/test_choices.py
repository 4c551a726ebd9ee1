"""What owners and operators change in a browser: a deletion is undone, limits and a name, the language."""

import re

import pytest
from playwright.sync_api import Page, expect

from jobs.owners import accounts, limits
from jobs.subjects import subject_pictures, subject_settings
from tests.browser.conftest import WAIT_MS
from tools.screenshots import OWNER, PICTURES, SUBJECT, World, pages, sign_in
from web.pages import texts

pytestmark = pytest.mark.timeout(900)
expect.set_options(timeout=WAIT_MS)

PICTURE = sorted(PICTURES.glob("*.png"))[0]


def test_a_deletion_is_undone(world: World, page: Page) -> None:
    """Of a picture, right where it was removed; of a subject, on its page, also after a reload, and in the list."""
    picture = subject_pictures.add(world.services, OWNER, "vase", PICTURE.read_bytes())
    sign_in(page, world.owner_token)
    page.goto("/subjects/vase")
    first = page.locator(".picture").first
    first.locator("summary").click()
    first.get_by_role("button", name="Remove").click()
    expect(page.locator("#notice")).to_contain_text("Picture removed.")
    expect(page.locator(".picture")).to_have_count(0)
    page.get_by_role("button", name="Undo", exact=True).click()
    expect(page.locator(".picture")).to_have_count(1)

    page.locator("#delete-open").click()
    page.get_by_role("button", name="Delete the subject").click()
    expect(page.locator("#deletion")).to_contain_text("This is deleted at")
    page.reload()
    expect(page.get_by_role("button", name="Undo the deletion")).to_be_visible()
    page.goto("/")
    tile = page.locator(".tile", has_text="vase")
    expect(tile.locator(".badge")).to_contain_text("deleted at")
    tile.get_by_role("button", name="Undo the deletion of vase").click()
    page.wait_for_url("**/subjects/vase?notice=undone")
    expect(page.locator("#deletion .note")).to_have_count(0)
    assert [one.id for one in subject_pictures.list_pictures(world.services, OWNER, "vase")] == [picture]


def test_the_part_that_is_trained_is_moved_by_mouse_and_by_keyboard(world: World, page: Page) -> None:
    one = subject_pictures.list_pictures(world.services, OWNER, SUBJECT)[0]
    sign_in(page, world.owner_token)
    page.goto(f"/subjects/{SUBJECT}/images/{one.id}/edit")
    form, frame = page.locator("#crop-form"), page.locator("#cropper .frame")

    def numbers() -> list[int]:
        return [int(form.locator(f"[name={name}]").input_value()) for name in ("left", "top", "width", "height")]

    def drag(by: int) -> None:
        box = grip.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + by, box["y"] + by, steps=4)
        page.mouse.up()

    grip, before = frame.locator(".grip"), numbers()
    grip.scroll_into_view_if_needed()
    drag(-80)  # by its corner it becomes smaller, in its shape
    smaller = numbers()
    assert smaller[:2] == before[:2]
    assert smaller[2] < before[2]
    assert abs(smaller[2] / smaller[3] - before[2] / before[3]) < 0.05
    grip = frame
    drag(300)  # and stays inside the picture
    moved = numbers()
    assert moved[2:] == smaller[2:]
    assert moved[0] > smaller[0]
    assert moved[0] + moved[2] <= one.width
    assert moved[1] + moved[3] <= one.height
    frame.press("ArrowLeft")
    frame.press("Shift+ArrowLeft")
    last = numbers()
    assert last[0] < moved[0]
    assert last[2] < moved[2]
    page.get_by_role("button", name="Train this part").click()
    expect(page.locator("#main")).to_contain_text("cropped by you")
    assert numbers() == last


def test_a_preset_is_seen_used_and_undone(world: World, page: Page) -> None:
    stored = {"max_steps": 200, "validation": {"previews": ["rex asleep", "rex at sea"]}}
    subject_settings.change(world.services, OWNER, "cup", {"base_model": "sd15", "recipe": stored})
    sign_in(page, world.owner_token)
    page.goto("/subjects/cup/recipe")
    page.get_by_role("link", name="Use this … A style").click()
    expect(page.locator("#changes")).to_contain_text("Layers with a LoRA: attention → all")
    expect(page.locator("#changes")).not_to_contain_text("Steps")
    expect(page.locator("#prices")).to_contain_text("A training costs 20 credits, as before.")
    page.get_by_role("button", name="Change the recipe").click()
    expect(page.locator("#notice")).to_contain_text("The recipe is changed.")
    changed = subject_settings.get(world.services, OWNER, "cup").recipe or {}
    assert (changed["max_steps"], changed["adapter"]) == (200, {"targets": "all"})
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#notice")).to_contain_text("Recipe saved.")
    assert subject_settings.get(world.services, OWNER, "cup").recipe == stored


def test_operators_change_limits_and_the_name_of_an_owner(world: World, page: Page) -> None:
    accounts.grant(world.services, "old name", 100, key="welcome")
    subject_pictures.add(world.services, "old name", "vase", PICTURE.read_bytes())
    sign_in(page, world.operator_token)
    page.goto("/operators/owners/old%20name")
    field = page.get_by_role("textbox", name="Stored pictures")
    field.fill("many")
    page.get_by_role("button", name="Save the limits").click()
    expect(page.locator("#main")).to_contain_text("must be a whole number")
    page.goto("/operators/owners/old%20name")
    field.fill("3")
    page.get_by_role("button", name="Save the limits").click()
    expect(page.locator("#notice")).to_have_text("Limits saved.")
    expect(field).to_have_value("3")
    assert limits.own_limits(world.services, "old name") == {"pictures": 3}

    page.locator("#rename-open").click()
    page.get_by_label("New name").fill("new name")
    page.get_by_role("button", name="Rename").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("new name")
    expect(page.locator("#notice")).to_contain_text("The owner is renamed.")
    expect(field).to_have_value("3")
    expect(page.locator("#log-title + *, #log-title ~ *").first).to_contain_text("owner.renamed")
    assert len(subject_pictures.list_pictures(world.services, "new name", "vase")) == 1


def test_samples_are_compared_by_mouse_and_by_keyboard(world: World, page: Page) -> None:
    """From the grid to one sample large beside another, under a divider."""
    sign_in(page, world.owner_token)
    page.goto(f"/trainings/{world.ready}")
    page.locator(".samples a").nth(1).press("Enter")
    expect(page.locator("#step")).to_have_value("250")
    divider, box = page.locator("#divider"), page.locator(".compare")
    expect(divider).to_have_value("50")
    edges = box.bounding_box()
    assert edges is not None
    page.mouse.move(edges["x"] + 0.8 * edges["width"], edges["y"] + 20)
    page.mouse.down()
    page.mouse.move(edges["x"] + 0.25 * edges["width"], edges["y"] + 20, steps=3)
    page.mouse.up()
    expect(divider).to_have_value("25")
    divider.press("ArrowRight")
    expect(divider).to_have_value("26")
    assert box.evaluate("one => one.style.getPropertyValue('--cut')") == "26%"
    line, shown = page.locator(".cut").bounding_box(), box.locator("img").last.bounding_box()
    assert line is not None
    assert shown is not None
    assert abs(line["x"] + line["width"] / 2 - shown["x"] - 0.26 * shown["width"]) < 2
    divider.blur()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#step")).to_have_value("500")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#step")).to_have_value("250")


def test_captions_are_edited_by_keyboard(world: World, page: Page) -> None:
    """Each is saved when the next or the one before is opened; the picture opens large, and closes with Escape."""
    second = world.pictures[4]
    sign_in(page, world.owner_token)
    page.goto(f"/subjects/{SUBJECT}/captions?picture={second}")
    text = page.locator("#text")
    expect(text).to_be_focused()
    seen = [second]
    for number, key in enumerate(("Control+Enter", "Alt+PageUp", "Alt+PageDown")):
        text.fill(f"by keyboard {number}")
        page.keyboard.press(key)
        page.wait_for_url(lambda url, at=seen[-1]: at not in url)
        expect(text).to_be_focused()
        seen.append(page.url.rpartition("=")[2].partition("&")[0].partition("#")[0])
    assert seen[2] == second
    assert seen[1] == seen[3] != second
    kept = {one.id: one.caption for one in subject_pictures.list_pictures(world.services, OWNER, SUBJECT)}
    assert (kept[second], kept[seen[1]]) == ("by keyboard 2", "by keyboard 1")

    zoom, large = page.locator("#zoom"), page.get_by_role("dialog", name="The picture, large")
    zoom.press("Enter")
    expect(large.locator("img")).to_be_visible()
    page.keyboard.press("Escape")
    expect(large).to_have_count(0)
    expect(zoom).to_be_focused()
    zoom.click()
    large.get_by_role("button", name="Close").click()
    expect(large).to_have_count(0)


def english(language: str) -> set[str]:
    """The fixed parts of our English texts that are no part of a translation."""
    entries = texts.catalogue(language).entries
    translated = "\n".join(form for forms in entries.values() for form in forms)
    parts = {
        part.strip(" .,;:()")
        for key in entries
        for text in key
        for part in re.split(r"%\(\w+\)s|\{\w+\}|<[^>]+>|\\\d", text)
    }
    return {part for part in parts if len(part) > 9 and " " in part and part not in translated}


def test_the_language_is_switched_and_nothing_of_ours_stays_english(world: World, page: Page) -> None:
    sign_in(page, world.owner_token)
    for code, title in (("de", "Konto"), ("zh", "账户"), ("en", "Account")):
        page.goto("/account")
        page.locator("#language").select_option(code)
        page.locator("#set-language").click()
        expect(page.get_by_role("heading", level=1)).to_have_text(title)
        assert page.evaluate("document.documentElement.lang") == code
        if code == "en":
            continue
        sentences = english(code)
        assert len(sentences) > 400
        found = []
        for name, address in pages(world)[world.owner_token].items():
            page.goto(address)
            shown = page.evaluate(
                """() => [document.title, document.body.textContent, ...[...document.querySelectorAll("*")].flatMap(
                    (one) => ["aria-label", "placeholder", "title", "alt"].map((name) => one.getAttribute(name) ?? ""),
                )].join("\\n")"""
            )
            found += [f"{name} ({code}): {one}" for one in sentences if one in re.sub(r"\s+", " ", shown)]
        assert found == []
