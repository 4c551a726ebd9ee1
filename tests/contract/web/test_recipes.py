"""The recipe of a subject on its page: presets, every option, JSON; and two trainings compared."""

import json
import re
from pathlib import Path
from unittest.mock import Mock

import pytest

from core.errors import NotFound
from core.settings import Settings
from jobs import service
from jobs.owners import accounts
from jobs.requests import recipe_options
from jobs.results import comparison
from jobs.subjects import captions, presets, subject_pictures, subject_recipe, subject_settings
from tests.contract.web.conftest import Api, make_api
from tests.contract.web.page import Visit
from tests.contract.web.test_results import cookie_of
from tests.docs.pages import ROOT, headings, section
from training.families.registry import BASE_MODELS
from training.options import Validation
from training.spec import TrainSpec
from web.pages import options, texts
from web.pages.options import OPTIONS

REX = "/subjects/rex/recipe"


def test_every_option_has_help_and_a_default() -> None:
    for base_model in BASE_MODELS:
        spec = TrainSpec.model_validate({"base_model": base_model, "trigger_word": "x", "seed": 7, "rank": 3})
        options = recipe_options.options_of(spec)
        assert [option.name for option in options if option.is_changed] == ["rank"]
        assert all(option.help for option in options)
    named = {option.name.partition(".")[0] for option in options}
    assert named == {*subject_recipe.RECIPE}, "each field of a recipe can be seen"


@pytest.mark.parametrize("base_model", BASE_MODELS)
def test_presets_are_valid_on_every_base_model(base_model: str) -> None:
    for preset in presets.PRESETS:
        recipe = presets.recipe_for(preset.kind, base_model, "sks rex", "dog")
        assert subject_recipe.parse(recipe, base_model)
        prompts = Validation.model_validate(recipe["validation"]).previews
        assert all("sks rex" in prompt for prompt in prompts)


def test_the_kind_follows_from_what_it_is() -> None:
    found = {word: presets.kind_of(word) for word in ("woman", "oil style", "mug", "", None)}
    assert found == {"woman": "character", "oil style": "style", "mug": "object", "": "character", None: "character"}


def test_a_preset_an_option_and_back_to_the_defaults(api: Api) -> None:
    signed_in = cookie_of(api)
    settings = {"trigger_word": "sks rex", "class_word": "dog", "base_model": "sd15"}
    subject_settings.change(api.services, "ada", "rex", settings)
    assert "All options have their defaults" in api.call("GET", REX, headers=signed_in).text
    assert api.call("POST", f"{REX}/preset", headers=signed_in, data={"kind": "style"}).status_code == 200
    kept = subject_settings.get(api.services, "ada", "rex").recipe or {}
    assert kept["adapter"] == {"targets": "all"}
    assert kept["validation"]["previews"][1] == "a portrait of a woman, sks rex"
    page = api.call("GET", REX, headers=signed_in).text
    assert '<option value="all" selected>all</option>' in page
    form = {
        "rank": "16", "adapter.dora": "yes", "learning_rate": "0.0002", "optimizer": "prodigy",
        "validation.previews": "rex asleep\n\nrex at sea",
    }  # fmt: skip
    refused = api.call("POST", REX, headers=signed_in, data={**form, "rank": "many", "learning_rate": "0.5"})
    assert refused.status_code == 422
    assert 'value="many"' in refused.text
    assert refused.text.count('class="fault"') >= 1
    wanted = {name: value for name, value in form.items() if name not in ("optimizer",)}
    assert api.call("POST", REX, headers=signed_in, data=wanted).status_code == 303
    assert subject_settings.get(api.services, "ada", "rex").recipe == {
        "rank": 16, "learning_rate": 0.0002, "adapter": {"dora": True},
        "validation": {"previews": ["rex asleep", "rex at sea"]},
    }  # fmt: skip
    assert "4 options differ" in api.call("GET", REX, headers=signed_in).text
    api.call("POST", REX, headers=signed_in, data={"rank": ""})
    assert subject_settings.get(api.services, "ada", "rex").recipe is None


def test_samples_of_a_preset_have_the_words_that_are_trained(api: Api) -> None:
    """A preset may be chosen first, and its words later: by the form, by the API, or by nobody."""
    page = Visit.of(api, "ada")
    token = api.token("ada", "train")
    images = api.upload(token, 5)
    accounts.grant(api.services, "ada", 10_000)

    def prompts_of(job_id: str) -> list[str]:
        return list(service.get(api.services, job_id).spec.validation.previews)

    def stored() -> list[str]:
        return (subject_settings.get(api.services, "ada", "rex").recipe or {})["validation"]["previews"]

    subject_settings.change(api.services, "ada", "rex", {"base_model": "sd15"})
    assert page.post(f"{REX}/preset", kind="character").status_code == 200
    assert stored() == presets.prompts_for("character", None, None)
    # By nobody: the word is derived from the name of the subject, and the stored recipe stays.
    arguments = subject_settings.training_arguments(api.services, "ada", "rex", {"images": images})
    assert arguments["validation"]["previews"] == presets.prompts_for("character", arguments["trigger_word"], None)
    # By the API.
    asked = {"triggerWord": "sks", "classWord": "dog", "imageIds": images}
    job_id = api.call("POST", "/api/influencer/rex/lora/train", token, json=asked).json()["id"]
    assert prompts_of(job_id) == presets.prompts_for("character", "sks", "dog")
    service.cancel(api.services, job_id)
    # By the form, twice; then prompts of the owner's own stay.
    form = {"base_model": "sd15", "max_steps": "", "resolution": "", "captions": ""}
    for trigger_word, class_word in (("imp", "vase"), ("zwx", "")):
        page.post("/subjects/rex/settings", **form, trigger_word=trigger_word, class_word=class_word)
        assert stored() == presets.prompts_for("character", trigger_word, class_word or None)
    subject_settings.change(api.services, "ada", "rex", {"trigger_word": "ohwx"})
    assert stored() == presets.prompts_for("character", "ohwx", None)
    subject_settings.change(api.services, "ada", "rex", {"recipe": {"validation": {"previews": ["ohwx asleep"]}}})
    subject_settings.change(api.services, "ada", "rex", {"trigger_word": "imp"})
    assert stored() == ["ohwx asleep"]


def test_a_preset_says_what_it_changes_keeps_the_steps_and_is_undone(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Visit.of(api, "ada")
    api.upload(api.token("ada"), 6)
    stored = {
        "max_steps": 200, "rank": 8, "adapter": {"targets": "all"},
        "validation": {"held_out": 1, "previews": ["rex asleep", "rex at sea"]},
    }  # fmt: skip
    subject_settings.change(api.services, "ada", "rex", {"base_model": "sd15", "recipe": stored})
    with monkeypatch.context() as spying:
        spy = Mock(wraps=subject_pictures.list_pictures)
        spying.setattr(subject_pictures, "list_pictures", spy)
        shown = re.sub(r"<[^>]+>", "", page.get(f"{REX}/preset?kind=character").text)
    assert spy.call_count == 1, "of the same size before and after, the pictures are read once"
    assert "Layers with a LoRA: all → attention" in shown
    assert "Keep every checkpoint: no → yes" in shown
    assert "What it learns: by what it is → character" in shown
    assert "Epochs between checkpoints: 10 → 9" in shown, "200 steps on 6 pictures are 33 epochs: a quarter of those"
    assert "A training costs 20 credits, as before." in shown
    assert "Steps:" not in shown
    assert "Rank:" not in shown
    assert subject_settings.get(api.services, "ada", "rex").recipe == stored, "nothing is changed by looking"
    answer = page.post(f"{REX}/preset", kind="character").text
    recipe = subject_settings.get(api.services, "ada", "rex").recipe or {}
    assert (recipe["max_steps"], recipe["rank"], recipe["validation"]["held_out"]) == (200, 8, 1)
    assert "adapter" not in recipe
    assert recipe["keep_checkpoints"] is True
    fields = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', answer)
    assert page.post(REX, **dict(fields)).status_code == 303
    assert subject_settings.get(api.services, "ada", "rex").recipe == stored
    # One that the stored options refuse replaces them, and says so.
    stored = {"adapter": {"targets": "convolutions", "conv_rank": 2}, "optimization": {"loraplus_ratio": 4}}
    subject_settings.change(api.services, "ada", "rex", {"recipe": stored})
    shown = re.sub(r"<[^>]+>", "", page.get(f"{REX}/preset?kind=style").text)
    assert "Layers with a LoRA: convolutions → all" in shown
    assert "Rank of convolutions: 2 → none" in shown
    assert page.post(f"{REX}/preset", kind="style").status_code == 200


def test_each_option_links_to_its_place_in_the_docs(tmp_path: Path) -> None:
    for name in OPTIONS.keys() - {"base_model", "trigger_word", "class_word"}:
        link = options.docs_link(name, str(ROOT / "docs" / "{page}.md"))
        assert link is not None
        file, _, anchor = link.partition("#")
        found = [one for one in headings(Path(file)) if anchor == one.lower().replace(" ", "-")]
        assert found, f"{name}: no heading for {link}"
        assert f"`{name.rpartition('.')[2]}`" in section(Path(file), found[0]), f"{name} is not below {link}"
    for address, links in ((None, 0), ("https://docs.example/{page}.html", 1)):
        for api in make_api(Settings(_env_file=None, home=tmp_path / "home", web_docs_url=address)):
            text = api.call("GET", REX, headers=cookie_of(api)).text
            assert text.count('href="https://docs.example/recipe.html#validation"') == 5 * links
            assert text.count('href="https://docs.example/') == links * text.count('id="help-')


def test_options_are_shown_and_read_in_the_language_of_the_page(api: Api) -> None:
    """With a decimal comma in German; the form shows what it has stored, lists of numbers included."""
    page = Visit.of(api, "dora")
    german = {"data.resolutions": "512, 256", "learning_rate": "0,0003", "resolution": "512"}
    page.cookie += f"; {texts.COOKIE}=de"
    assert page.post("/subjects/rex/recipe", **german).status_code == 303
    assert subject_settings.get(api.services, "dora", "rex").recipe == {
        "resolution": 512, "learning_rate": 0.0003, "data": {"resolutions": [512, 256]},
    }  # fmt: skip
    shown = page.get("/subjects/rex/recipe").text
    for name, value in german.items():
        assert re.search(f'<input id="{name}" name="{name}" value="{value}"', shown), name
    assert "Lernrate <code" in shown
    assert 'placeholder="0,01"' in shown  # the weight decay
    assert re.search('<option value="yes">ja</option>', shown)


def test_a_recipe_is_shared_as_json(api: Api) -> None:
    signed_in = cookie_of(api)
    subject_settings.change(api.services, "ada", "rex", {"base_model": "sdxl", "recipe": {"rank": 32}})
    text = api.call("GET", f"{REX}.json", headers=signed_in).text
    assert json.loads(text) == {"base_model": "sdxl", "rank": 32}
    to = "/subjects/other/recipe"
    assert api.call("POST", f"{to}/import", headers=signed_in, data={"text": text}).status_code == 303
    other = subject_settings.get(api.services, "ada", "other")
    assert (other.base_model, other.recipe) == ("sdxl", {"rank": 32})
    for wrong in ("[1]", "{", '{"rank": 9999}', '{"base_model": "none"}'):
        answer = api.call("POST", f"{to}/import", headers=signed_in, data={"text": wrong})
        assert answer.status_code == 422, wrong
        assert 'id="error"' in answer.text
    assert subject_settings.get(api.services, "ada", "other").recipe == {"rank": 32}


def test_what_changed_since_the_training_before_is_listed(api: Api) -> None:
    secret, signed_in = api.token("ada"), cookie_of(api)
    images = api.upload(secret, 8)
    first = str(api.train(secret, images[:7]).json()["id"])
    assert comparison.previous(api.services, first) is None
    captions.set_all(api.services, "ada", "rex", {images[2]: "asleep"})
    second = str(api.train(secret, images[1:], rank=8, adapter={"targets": "all"}).json()["id"])
    assert comparison.previous(api.services, second) == first
    found = comparison.compare(api.services, first, second, "ada")
    assert {(one.name, one.before, one.after) for one in found.changes} == {
        ("rank", 4, 8), ("adapter.targets", "attention", "all"),
    }  # fmt: skip
    assert (found.added, found.left_out, found.recaptioned) == (1, 1, 1)
    page = api.call("GET", f"/trainings/{second}", headers=signed_in).text
    assert "Changed since the training before" in page
    assert f"/trainings/{second}/compare?with={first}" in page
    shown = api.call("GET", f"/trainings/{second}/compare", headers=signed_in).text
    rows = re.findall(
        r'<tr class="differs"><th scope="row">([^<]+?) ?(?:<code>.*?</code>)?</th><td>([^<]*)</td><td>([^<]*)</td>',
        shown,
    )
    assert ("Rank", "4", "8") in rows
    assert ("pictures", "1 only here", "1 only here") in rows
    with pytest.raises(NotFound):
        comparison.compare(api.services, first, second, "bob")


def test_each_preset_lists_what_it_sets_on_the_base_model(api: Api) -> None:
    """A family that has no such option does not get it."""
    page = Visit.of(api, "ada")
    told = {}
    for base_model in ("sd15", "qwen-image"):
        subject_settings.change(api.services, "ada", "rex", {"base_model": base_model})
        text = page.get("/subjects/rex/recipe").text
        told[base_model] = re.findall(r'<span class="muted small">On ([^<:]+): ([^<]+)\.</span>', text)
        for kind, (title, sets) in zip(presets.BY_KIND, told[base_model], strict=True):
            assert title == BASE_MODELS[base_model].title
            for name, value in presets.recipe_for(kind, base_model, None, None).items():
                if not isinstance(value, dict):
                    assert (f"{OPTIONS[name]} = " in sets) == (name != "learns"), sets
    assert "Mirrored pictures too = yes" in told["sd15"][2][1]
