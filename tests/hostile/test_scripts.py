"""Script in every text that people or files bring is only text: on the page, in e-mails, and in what Grafana reads."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from urllib.parse import quote

import pytest
from prometheus_client.parser import text_string_to_metric_families

from core.clock import utcnow
from core.errors import ImageInvalid
from core.settings import Settings
from jobs import service
from jobs.lifecycle import transitions
from jobs.owners import accounts
from jobs.subjects import captions
from notifications import mail
from notifications.mail import MailFacts
from notifications.preferences import EVENTS
from tests.contract.web.conftest import RECIPE, Api, make_api
from tests.site import MASCOT, ROOT
from web.pages.session import COOKIE

# What would become an element or an attribute of its own, were it not escaped.
SCRIPTS = {
    "an element": "<x-evil>",
    "out of an attribute": "\"><x-evil onx='1'>",
    "out of a quote": "' onx='1",
    "out of a title": "</title><x-evil>",
    "out of a script": "</script><x-evil>",
    "out of a comment": "--><x-evil><!--",
    "a template": "{{ 98765 * 99991 }}{% x-evil %}",
    "an address": "javascript:x-evil",
    "a line": "x\r\nBcc: x-evil@example.org",
}


class Page(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.addresses: list[str] = []
        self.scripts: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "action", "formaction")]
        if tag == "script":
            self.scripts.append(dict(attrs).get("src"))


def check(text: str) -> None:
    """Nothing of SCRIPTS became a part of the page."""
    page = Page(text)
    assert "x-evil" not in page.elements
    assert not [name for name in page.attributes if name.startswith("on")]
    assert not [address for address in page.addresses if address.lower().startswith(("javascript:", "data:"))]
    assert all(source is not None and source.startswith("/static/") for source in page.scripts)
    # Of ten digits: four of them stand in a random id now and then.
    assert str(98765 * 99991) not in text, "a template was rendered"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    yield from make_api(Settings(_env_file=None, home=tmp_path_factory.mktemp("home"), web_rate_per_s=1e6))


@pytest.mark.parametrize("kind", [kind for kind in SCRIPTS if kind != "a line"])
def test_on_the_page_and_in_the_api_it_is_text(api: Api, kind: str) -> None:
    """As an owner's name, a token's, a browser's; a subject's id, words, a file's name, a caption and a reason."""
    script = SCRIPTS[kind]
    services, owner, subject = api.services, f"ada {script}", f"rex {script}"
    accounts.grant(services, owner, 1000)
    secret = api.token(None, "read", "train", "operate")
    named = {"Imprint-Owner": quote(owner)}
    files = [("files", (f"{script}{file.name}", file.read_bytes())) for file in sorted(MASCOT.glob("*.png"))[:6]]
    path = f"/api/influencer/{quote(subject, safe='')}"
    stored = api.call("POST", f"{path}/images", secret, headers=named, files=files)
    images = [image["id"] for image in stored.json()["images"]]
    for image in images[:2]:
        captions.set_all(services, owner, subject, {image: script})
    body = {**RECIPE, "imageIds": images, "triggerWord": f"sks {script}"[:100], "classWord": script}
    started = api.call("POST", f"{path}/lora/train", secret, headers=named, json=body)
    assert started.status_code == 202, started.text
    job_id = started.json()["id"]
    with services.database.writing() as session:
        transitions.fail(session, job_id, ImageInvalid(f"picture 1 ({script}): {script}"))
    service.retry(services, job_id)

    form = {"token": secret, "owner": owner}
    headers = {"origin": "http://testserver", "user-agent": f"Browser {script}"}
    cookie = api.call("POST", "/sign-in", headers=headers, data=form).cookies[COOKIE]
    api.client.cookies.clear()
    texts = []
    for page in ("/", "/account", "/operators", f"/subjects/{quote(subject, safe='')}", f"/trainings/{job_id}"):
        answer = api.call("GET", page, headers={"cookie": f"{COOKIE}={cookie}"})
        assert answer.status_code == 200, f"{page}: {answer.text}"
        assert "unsafe" not in answer.headers["content-security-policy"]
        check(answer.text)
        texts.append(answer.text)
    assert any("evil" in text or "onx" in text or "99991" in text for text in texts), "it is shown, as text"
    refused = api.call("POST", "/sign-in", headers={"origin": "http://testserver"}, data=form | {"token": script})
    check(refused.text)

    for route in (f"{path}/lora/available-images", f"{path}/lora/status", f"/api/trainings/{job_id}/log"):
        answer = api.call("GET", route, secret, headers=named)
        assert answer.headers["content-type"].partition(";")[0] in ("application/json", "text/plain")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")

    # Grafana shows labels of metrics: none of them is a text of an owner.
    metrics = api.call("GET", "/metrics", secret).text
    assert "imprint_jobs" in metrics
    assert not [word for word in (script, subject, owner) if word in metrics]


def test_no_text_of_a_stranger_makes_a_line_of_the_metrics(api: Api) -> None:
    """Not a method, a path, an owner's or subject's name: Prometheus would keep a series of each for ever."""
    secret = api.token(None, "read", "train", "operate")

    def series() -> set[tuple[str, ...]]:
        text = api.call("GET", "/metrics", secret).text
        read = {
            (sample.name, *sample.labels.items())
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        labels = {value for _, *pairs in read for _, value in pairs}
        assert all(re.fullmatch(r"[\w+./{}:-]*", value) for value in labels), labels
        return {(name, str([pair for pair in pairs if pair[0] != "status"])) for name, *pairs in read}

    def ask(text: str) -> None:
        named = {"Imprint-Owner": quote(text)}
        for method in ("GET", "BREW<x-evil>" + text[:1].upper()):
            for path in (f"/{quote(text, safe='')}", f"/api/influencer/{quote(text, safe='')}/lora/status"):
                api.call(method, path, secret, headers=named)

    ask("first")
    api.call("GET", "/metrics", secret)
    before = series()
    for text in ('x"} 1\nimprint_evil{a="', "back\\slash", *SCRIPTS.values(), "another"):
        ask(text)
    assert series() - before == set()


def test_grafana_draws_numbers_and_no_markup() -> None:
    """A panel for text, or a column for HTML, would run what a label says."""
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "imprint.json").read_text())
    assert {panel["type"] for panel in dashboard["panels"]} <= {"row", "stat", "timeseries"}
    assert "links" not in json.dumps(dashboard), "an address with a label in it"
    configured = (ROOT / "deploy" / "compose.yml").read_text()
    assert "SANITIZE_HTML" not in configured, "Grafana's own cleaning of markup is on unless it is turned off"


@pytest.mark.parametrize("kind", SCRIPTS)
def test_in_an_e_mail_it_is_text(kind: str) -> None:
    script = SCRIPTS[kind]
    facts = MailFacts(
        owner=script, subject=script, job_id=script, base_model=script, trigger_word=script, steps=script, code=script,
        reason=script, charged=script, refunded=script, available=1, low=2,
    )  # fmt: skip
    for event in set(EVENTS) - {"training.refused"}:  # a webhook only
        drafted = mail.draft(event, facts, "https://imprint.example")
        composed = mail.compose(drafted, sender="a@example.org", to="b@example.org", message_id="msg_1", at=utcnow())
        sent = composed.as_bytes()
        headers = sent.partition(b"\r\n\r\n")[0].lower()
        assert b"\r\nbcc:" not in headers
        assert composed["To"] == "b@example.org"
        html = composed.get_body(("html",))
        assert html is not None
        check(html.get_content())
