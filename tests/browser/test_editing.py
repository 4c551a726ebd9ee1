"""What an owner edits in a browser beyond one picture: all captions at once, and recipes that are copied and shared."""

import io
import json
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from jobs.subjects import subject_pictures, subject_settings
from tests.browser.conftest import WAIT_MS
from tools.screenshots import OWNER, PICTURES, World, sign_in

pytestmark = pytest.mark.timeout(900)
expect.set_options(timeout=WAIT_MS)


def test_captions_are_replaced_in_all_and_read_from_files(world: World, page: Page, tmp_path: Path) -> None:
    for number, file in enumerate(sorted(PICTURES.glob("*.png"))[:3]):
        subject_pictures.add(world.services, OWNER, "mug", file.read_bytes(), name=f"mug{number}.png")

    def texts() -> list[str | None]:
        return [one.caption for one in subject_pictures.list_pictures(world.services, OWNER, "mug")]

    sign_in(page, world.owner_token)
    page.goto("/subjects/mug")
    page.get_by_role("link", name="Edit captions").click()

    # From text files, and from a ZIP of them; what fits no picture is named.
    (tmp_path / "mug0.txt").write_text("a cup on a table")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("captions/mug1.txt", "a cup on a chair")
        out.writestr("captions/mug2.txt", "a Cup in rain")
    (tmp_path / "captions.zip").write_bytes(archive.getvalue())
    (tmp_path / "other.txt").write_text("a plate")
    for name, told in (
        ("mug0.txt", "Captions read from the files."),
        ("captions.zip", "Captions read from the files."),
        ("other.txt", "no picture has the name of these captions: other.txt"),
    ):
        page.get_by_label("Captions from files").set_input_files(tmp_path / name)
        page.get_by_role("button", name="Import").click()
        expect(page.locator("#all .note")).to_contain_text(told)
        expect(page.locator("#all .note")).to_be_in_viewport()
    assert texts() == ["a cup on a table", "a cup on a chair", "a Cup in rain"]
    page.get_by_role("button", name="Dismiss").click()
    expect(page.locator("#all .note")).to_have_count(0)

    # Found first, without a change; then replaced in all; then as it was.
    page.get_by_role("textbox", name="Find").fill("cup")
    page.get_by_role("button", name="Find", exact=True).click()
    expect(page.locator("#all")).to_contain_text("Found in 2 captions: mug0.png, mug1.png.")
    expect(page.get_by_role("textbox", name="Find")).to_have_value("cup")
    page.get_by_label("Replace with").fill("sks mug")
    page.get_by_role("button", name="Replace in all").click()
    expect(page.get_by_text("2 captions changed.")).to_be_visible()
    expect(page.locator("#text")).to_have_value("a sks mug on a table")
    page.get_by_label("Put in front of every caption").fill("photo, ")
    page.get_by_role("button", name="Put in front").click()
    expect(page.get_by_text("3 captions changed.")).to_be_visible()
    assert texts() == ["photo, a sks mug on a table", "photo, a sks mug on a chair", "photo, a Cup in rain"]
    for left in (["a sks mug on a table", "a sks mug on a chair", "a Cup in rain"],
                 ["a cup on a table", "a cup on a chair", "a Cup in rain"]):  # fmt: skip
        page.get_by_role("button", name="Undo the last change").click()
        expect(page.locator("#text")).to_have_value(left[0])
        assert texts() == left


def test_a_recipe_is_copied_from_a_training_and_shared_as_json(world: World, page: Page) -> None:
    sign_in(page, world.owner_token)
    page.goto("/subjects/jug/recipe")
    page.get_by_label("From a training").select_option(world.earlier)
    page.get_by_role("button", name="Fill in its recipe").click()
    expect(page.locator("#like-note")).to_contain_text("With the recipe of an earlier training")
    expect(page.get_by_role("textbox", name="Steps")).to_have_value("1000")
    expect(page.locator("#other-options")).to_contain_text("Rank = 8")
    page.get_by_label("Trigger word").fill("sks jug")
    page.get_by_role("button", name="Save settings").click()
    expect(page.locator("#notice")).to_contain_text("Settings saved.")
    recipe = subject_settings.get(world.services, OWNER, "jug").recipe
    assert recipe is not None
    assert (recipe["rank"], recipe["max_steps"]) == (8, 1000)

    # Downloaded here, and pasted on another subject's page.
    page.get_by_role("link", name="Presets, sample prompts and every option").click()
    with page.expect_download() as coming:
        page.get_by_role("link", name="Download").click()
    shared = coming.value.path().read_text()
    assert coming.value.suggested_filename == "recipe.json"
    assert json.loads(shared) == {"base_model": "sd15", **recipe}
    page.goto("/subjects/pot/recipe")
    page.get_by_label("As JSON").fill(shared.replace('"rank": 8', '"rank": 8000'))
    page.get_by_role("button", name="Use this JSON").click()
    expect(page.locator("#error")).to_contain_text("must be at most")
    expect(page.get_by_label("As JSON")).to_have_value(shared.replace('"rank": 8', '"rank": 8000'))
    page.get_by_label("As JSON").fill(shared)
    page.get_by_role("button", name="Use this JSON").click()
    expect(page.locator("#notice")).to_contain_text("Recipe saved.")
    expect(page.get_by_role("textbox", name="Rank rank changed")).to_have_value("8")
    assert subject_settings.get(world.services, OWNER, "pot").recipe == recipe
