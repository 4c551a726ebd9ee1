"""The page in other languages: every text is in each catalogue, plurals are right, and each visitor gets a language."""

import re
from pathlib import Path

import pytest

from jobs.requests import recipe_options
from tests.contract.web.conftest import Api
from tests.contract.web.page import HERE, Visit
from tools import messages as message_texts
from tools.texts import collect
from web.pages import texts
from web.pages.assets import STATIC
from web.pages.messages import VALUE, in_words, said
from web.pages.options import OPTIONS, listed, value
from web.pages.render import seconds, size

TEMPLATES = STATIC.parent / "templates" / "page"
OTHERS = sorted(set(texts.LANGUAGES) - {"en"})
ALL = sorted(TEMPLATES.rglob("*.html"))
NO_WORDS = {"Imprint", "SHA", "px", "rex"}


@pytest.mark.parametrize("language", OTHERS)
def test_every_text_is_translated_with_its_values_and_tags(language: str) -> None:
    entries = texts.catalogue(language).entries
    wanted = collect()
    assert len(wanted) > 500
    assert [key for key in wanted if not all(entries.get(key, ("",)))] == []
    assert set(entries) - set(wanted) == {("", "")}
    parts = re.compile(r"%\(\w+\)s|\\\d|\{\w+\}|</?\w+(?: [^>]*)?>")
    for (one, many), forms in entries.items():
        for form in forms:
            if one:
                assert sorted(parts.findall(form)) == sorted(parts.findall(many or one)), form


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_no_template_has_a_text_that_is_not_marked(path: Path) -> None:
    hidden = r"\{#.*?#\}|\{% trans.*?%\}.*?\{% endtrans %\}|\{%.*?%\}|\{\{.*?\}\}"
    source = re.sub(hidden, " ", path.read_text(), flags=re.S)
    assert set(re.findall(r"[A-Za-z]{2,}", re.sub(r"<[^>]*>|\S*[?=]\S*|&\w+;", " ", source))) <= NO_WORDS
    for text in re.findall(r'(?:aria-label|placeholder|alt|title)="([^"]*)"', source):
        assert set(re.findall(r"[A-Za-z]{2,}", text)) <= NO_WORDS


def _filled(sentence: str, marks: dict[str, str]) -> str:
    return VALUE.sub(lambda name: marks[name[1]], sentence)


@pytest.mark.parametrize("language", OTHERS)
def test_each_message_is_recognised_and_keeps_its_values(language: str) -> None:
    texts.use(language)
    english = list(dict.fromkeys(message_texts.collect()))
    assert len(english) > 150
    for sentence in english:
        marks = {name: f"<{at}>" for at, name in enumerate(VALUE.findall(sentence))}
        message = _filled(sentence, marks)
        assert said(message) == _filled(texts.catalogue(language).get(sentence), marks)
    texts.use("")
    assert said(message) == message


def test_messages_in_messages() -> None:
    small = "too small: 120 by 90 pixels would be enlarged 2.1 times for 512; it fits a resolution of at most 192"
    told = (
        "4 of 6 pictures can be trained on at 512 pixels; at least 5 are needed "
        f"(picture 3 (a.png): {small}; picture 4: nothing but noise)"
    )
    texts.use("de")
    klein = "zu klein: 120 mal 90 Pixel würden für 512 2.1-fach vergrößert; es passt zu einer Auflösung bis 192"
    assert said(told) == (
        "Mit 4 von 6 Bildern lässt sich bei 512 Pixeln trainieren; nötig sind mindestens 5 "
        f"(Bild 3 (a.png): {klein}; Bild 4: nichts als Rauschen)"
    )
    assert said("rex.png: nothing but noise") == "rex.png: nichts als Rauschen"
    assert said("this training costs 60 credits; 5 are available").startswith("Kosten (Training): 60 Credits; ")
    assert said("nobody knows this: 5") == "nobody knows this: 5"
    assert said(None) == ""
    long = "picture 3 (a.png): too small: " * 95
    assert said(long).startswith("Bild 3 (a.png): ")  # bounded in depth and time
    answer = {"images": [{"faults": [{"code": "noise", "text": "nothing but noise"}]}], "notes": ["the file is empty"]}
    assert in_words(answer) == {
        "images": [{"faults": [{"code": "noise", "text": "nichts als Rauschen"}]}], "notes": ["Die Datei ist leer"]
    }  # fmt: skip
    texts.use("")


def test_plurals_and_numbers() -> None:
    told = {}
    for language in texts.LANGUAGES:
        texts.use(language)
        told[language] = [texts.count(number, "picture") for number in (0, 1, 2, 1234)]
    texts.use("")
    assert told["en"] == ["0 pictures", "1 picture", "2 pictures", "1\u202f234 pictures"]
    assert told["de"] == ["0 Bilder", "1 Bild", "2 Bilder", "1\u202f234 Bilder"]
    assert told["zh"] == ["0 张图片", "1 张图片", "2 张图片", "1\u202f234 张图片"]


def test_decimals_names_and_options_in_each_language() -> None:
    told = {}
    for language in texts.LANGUAGES:
        texts.use(language)
        told[language] = [
            texts.number(1234.5, ",.2f"),
            size(20_000_000),
            seconds(3900),
            listed(["a", "b", "c"]),
            listed(["a"]),
            value([]),
            value(True),
        ]
    texts.use("")
    assert told["en"] == ["1\u202f234.50", "20 MB", "1 h 5 min", "a, b and c", "a", "none", "yes"]
    assert told["de"] == ["1\u202f234,50", "20 MB", "1 Std. 5 Min.", "a, b und c", "a", "keine", "ja"]
    assert told["zh"] == ["1\u202f234.50", "20 MB", "1 小时 5 分钟", "a、b 和 c", "a", "无", "是"]
    assert set(recipe_options.flat(recipe_options.defaults("sd15"))) < set(OPTIONS)  # each has a label


@pytest.mark.parametrize(
    ("accepted", "cookies", "language"),
    [
        ("", "", "en"),
        ("de-CH, en;q=0.5", "", "de"),
        ("fr, zh-TW;q=0.8, de;q=0.9", "", "de"),
        ("de;q=0, zh;q=0.1", "", "zh"),
        ("fr;q=x, ;;, de;q=9", "", "de"),
        ("de", "a=b; imprint_language=zh; c=d", "zh"),
        ("de", "imprint_language=xx", "de"),
        ("de", "not_imprint_language=zh", "de"),
    ],
)
def test_the_language_of_a_request(accepted: str, cookies: str, language: str) -> None:
    texts.use(accepted, cookies)
    assert texts.language() == language
    texts.use("")


def test_pages_in_the_chosen_language(api: Api) -> None:
    api.upload(api.token("ada"), 1)
    shown = api.call("GET", "/sign-in", headers={"accept-language": "de-AT,de;q=0.9"})
    assert '<html lang="de">' in shown.text
    assert "Mit der Tastatur" not in shown.text
    assert "Trainieren Sie ein LoRA" in shown.text
    assert shown.headers["content-language"] == "de"
    page = Visit.of(api, "ada")
    assert "1 good, 5 needed" in page.get("/subjects/rex").text
    chosen = page.post("/language", language="zh", next="/account")
    assert (chosen.status_code, chosen.headers["location"]) == (303, "/account")
    page.cookie += f"; {texts.COOKIE}={chosen.cookies[texts.COOKIE]}"
    text = page.get("/subjects/rex").text
    assert "1 张合格，需要 5 张" in re.sub(r"\s+", " ", text)  # noqa: RUF001
    assert "训练需要 5 张合格图片；现有 1 张。" in text  # noqa: RUF001
    assert page.post("/subjects/rex/train", key="1" * 32, credits_shown=1).status_code == 422
    assert "请检查您的输入" in page.post("/subjects/rex/train", key="1" * 32, credits_shown=1).text
    assert texts.COOKIE not in page.post("/language", language="xx").cookies
    foreign = api.call("POST", "/language", headers={"origin": "https://evil.example"}, data={"language": "de"})
    assert foreign.status_code == 403
    back = api.call("POST", "/language", headers=HERE, data={"language": "de", "next": "https://evil.example"})
    assert back.headers["location"] == "/"


@pytest.mark.parametrize(
    ("accepted", "encoding"), [("gzip, br", "gzip"), ("br, gzip;q=0.5", "gzip"), ("gzip;q=0, br", None), ("", None)]
)
def test_pages_and_scripts_are_compressed_for_those_who_take_it(api: Api, accepted: str, encoding: str | None) -> None:
    for path in ("/sign-in", "/static/imprint.js"):
        answer = api.call("GET", path, headers={"accept-encoding": accepted})
        assert answer.headers.get("content-encoding") == encoding
        assert "Accept-Encoding" in answer.headers["vary"]
        assert ("<h1>Sign in</h1>" in answer.text) or ("const byId" in answer.text)
