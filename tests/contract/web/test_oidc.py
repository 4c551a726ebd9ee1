"""Sign-in by OpenID Connect, against a provider with real signatures: who gets in, as what, and what is refused."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from core.errors import SpecInvalid
from core.settings import Settings
from fakes.oidc import FakeOidc, Person
from fakes.oidc.server import CLIENT_ID, CLIENT_SECRET
from jobs.owners import audit_log, people, tokens
from tests.contract.web import test_matrix, test_page_matrix
from tests.contract.web.conftest import Api, make_api
from web.oidc import OidcProvider
from web.pages import oidc as oidc_pages
from web.pages.session import COOKIE

HERE = {"origin": "http://testserver"}
HEDY = Person("hedy-1", {"email": "hedy@example.com", "email_verified": True, "groups": ["staff", "gpu-operators"]})
VERA = Person("vera-2", {"groups": "gpu-viewers"})
ADA = Person("ada-3", {"imprint_owner": "ada"})


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeOidc]:
    with FakeOidc() as provider:
        yield provider


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, provider: FakeOidc) -> Iterator[Api]:
    settings = Settings(
        _env_file=None, home=tmp_path_factory.mktemp("home"), public_url="http://testserver",
        oidc_issuer=provider.issuer, oidc_client_id=CLIENT_ID, oidc_client_secret=CLIENT_SECRET,
        oidc_operators=["gpu-operators", "ole@example.com"], oidc_viewers=["gpu-viewers"],
        oidc_owner_claim="imprint_owner",
    )  # fmt: skip
    yield from make_api(settings)


@dataclass
class Browser:
    """One browser: what it was given at the way to the provider, and where the provider sent it."""

    api: Api
    provider: FakeOidc
    cookie: str = ""
    callback: str = ""

    def go(self, person: Person | None, **changed: Any) -> "Browser":
        """To the provider, where `person` signs in; not back yet."""
        self.provider.person, self.provider.changed = person, changed
        self.api.client.cookies.clear()
        answer = self.api.call("GET", "/oidc/sign-in?next=/trainings")
        assert answer.status_code == 303, answer.text
        self.cookie = answer.headers["set-cookie"].split(";")[0]
        self.api.client.cookies.clear()
        back = httpx2.get(answer.headers["location"], follow_redirects=False, timeout=60)
        assert back.status_code == 302, back.text
        self.callback = back.headers["location"].removeprefix("http://testserver")
        return self

    def come_back(self, callback: str | None = None, cookie: str | None = None) -> httpx2.Response:
        headers = {"cookie": self.cookie if cookie is None else cookie}
        answer = self.api.call("GET", callback or self.callback, headers=headers)
        self.api.client.cookies.clear()
        return answer


@pytest.fixture
def browser(site: Api, provider: FakeOidc) -> Browser:
    provider.signed_by = ""
    return Browser(site, provider)


def session_of(answer: httpx2.Response) -> dict[str, str]:
    assert answer.status_code == 303, answer.text
    return {**HERE, "cookie": f"{COOKIE}={answer.cookies[COOKIE]}"}


def test_an_operator_signs_in_and_the_audit_log_names_the_person(browser: Browser) -> None:
    answer = browser.go(HEDY).come_back()
    assert answer.headers["location"] == "/operators"
    hedy = session_of(answer)
    paused = browser.api.call("POST", "/operators/pauses", headers=hedy, data={"scope": "family:sdxl", "reason": ""})
    assert paused.status_code == 303
    [entry] = audit_log.list_entries(browser.api.services, action="admission.paused")
    assert (entry.actor, entry.actor_id) == ("person", "hedy@example.com")
    page = browser.api.call("GET", "/operators", headers=hedy)
    assert "hedy@example.com" in page.text
    assert 'class="viewer"' not in page.text


@pytest.mark.parametrize("configured", ["", "/"])
def test_an_issuer_may_end_with_a_slash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: FakeOidc, configured: str
) -> None:
    monkeypatch.setattr(provider, "published", f"{provider.issuer}/")
    settings = Settings(
        _env_file=None, home=tmp_path, public_url="http://testserver", oidc_issuer=provider.issuer + configured,
        oidc_client_id=CLIENT_ID, oidc_client_secret=CLIENT_SECRET, oidc_operators=["gpu-operators"],
    )  # fmt: skip
    for api in make_api(settings):
        assert Browser(api, provider).go(HEDY).come_back().headers["location"] == "/operators"
        assert Browser(api, provider).go(HEDY, iss=provider.issuer).come_back().status_code == 403


def test_a_viewer_sees_everything_and_changes_nothing(browser: Browser) -> None:
    vera = session_of(browser.go(VERA).come_back())
    page = browser.api.call("GET", "/operators", headers=vera)
    assert (page.status_code, 'class="viewer"' in page.text) == (200, True)
    asked = {"scope": "family:flux1"}
    assert browser.api.call("POST", "/operators/pauses", headers=vera, data=asked).status_code == 403


def test_an_owner_sees_their_own_pages(browser: Browser) -> None:
    answer = browser.go(ADA).come_back()
    assert answer.headers["location"] == "/trainings"
    ada = session_of(answer)
    assert browser.api.call("GET", "/account", headers=ada).status_code == 200
    assert browser.api.call("GET", "/operators", headers=ada).status_code == 403


def test_a_role_is_as_the_provider_says_at_the_last_sign_in(browser: Browser) -> None:
    first = session_of(browser.go(Person("max", {"groups": ["gpu-operators"]})).come_back())
    asked = {"scope": "family:sd15"}
    assert browser.api.call("POST", "/operators/pauses", headers=first, data=asked).status_code == 303
    browser.go(Person("max", {"groups": ["gpu-viewers"]})).come_back()
    assert browser.api.call("POST", "/operators/pauses/end", headers=first, data=asked).status_code == 403
    [token] = [one for one in tokens.list_tokens(browser.api.services) if one.name == "max"]
    tokens.revoke(browser.api.services, token.id)
    assert browser.api.call("GET", "/operators", headers=first).status_code == 303


def test_whose_last_role_is_gone_has_no_session_left(browser: Browser) -> None:
    first = session_of(browser.go(Person("kim", {"groups": ["gpu-operators"]})).come_back())
    assert browser.api.call("GET", "/operators", headers=first).status_code == 200
    assert browser.go(Person("kim", {"groups": ["staff"]})).come_back().status_code == 403
    assert browser.api.call("GET", "/operators", headers=first).status_code == 303


def test_the_same_name_at_another_issuer_is_another_person(site: Api) -> None:
    claims = {"sub": "lou", "groups": ["gpu-operators"]}
    here = people.Person.parse(claims, site.services.settings)
    other = people.Person.parse(claims, site.services.settings.model_copy(update={"oidc_issuer": "https://b.example"}))
    first, second = people.sign_in(site.services, here), people.sign_in(site.services, other)
    assert first.id != second.id
    with pytest.raises(SpecInvalid):
        people.sign_in(site.services, replace(other, roles=frozenset()))
    valid = {token.id for token in tokens.list_tokens(site.services) if token.revoked_at is None}
    assert valid & {first.id, second.id} == {first.id}


@pytest.mark.parametrize(
    ("claims", "owner"),
    [
        ({"email": "ada@example.com", "email_verified": True}, "ada@example.com"),
        ({"email": "ada@example.com", "email_verified": False}, None),
        ({"email": "ada@example.com"}, None),
    ],
)
def test_an_owner_is_named_by_a_verified_address_only(site: Api, claims: dict[str, Any], owner: str | None) -> None:
    settings = site.services.settings.model_copy(update={"oidc_owner_claim": "email", "oidc_roles_claim": "email"})
    person = people.Person.parse({"sub": "ada", **claims}, settings)
    assert (person.owner, person.roles) == (owner, frozenset({owner} if owner else ()))


@pytest.mark.parametrize(
    "person",
    [
        Person("eve", {"groups": ["staff"]}),
        Person("eve", {"email": "ole@example.com"}),  # anybody can say so
        Person("eve", {"email": "ole@example.com", "email_verified": False}),
        Person("eve", {"email": "ole@example.com", "email_verified": "true"}),
        Person("eve", {"email": "ole@example.com", "email_verified": 1}),
        Person("eve", {"email": ["ole@example.com"], "email_verified": True}),
        Person("eve", {"email": "Ole@example.com", "email_verified": True}),  # perhaps another account there
        Person("eve", {"groups": "staff gpu-operators"}),
        Person("eve", {"groups": [["gpu-operators"], {"gpu-operators": True}, None]}),
        Person("eve", {"roles": ["gpu-operators"]}),
        Person("gpu-operators", {"preferred_username": "ole@example.com"}),
        Person("eve", {"imprint_owner": ["ada"]}),
        Person("eve", {"imprint_owner": ""}),
        Person("eve", {"imprint_owner": "a\x00b"}),
    ],
)
def test_who_has_no_role_and_no_owner_is_not_let_in(browser: Browser, person: Person) -> None:
    answer = browser.go(person).come_back()
    assert (answer.status_code, COOKIE in answer.cookies) == (403, False)


def test_a_verified_address_may_be_named(browser: Browser) -> None:
    ole = Person("ole", {"email": "ole@example.com", "email_verified": True})
    assert browser.go(ole).come_back().headers["location"] == "/operators"


@pytest.mark.parametrize(
    "changed",
    [
        {"nonce": "x" * 64}, {"nonce": None}, {"aud": "another"}, {"aud": None}, {"iss": "https://evil.example"},
        {"exp": 1_000_000_000}, {"exp": None}, {"iat": 4_000_000_000}, {"sub": None},
        {"aud": [CLIENT_ID, "another"], "azp": "another"}, {"aud": [CLIENT_ID, "another"]},
    ],
)  # fmt: skip
def test_a_token_for_something_else_is_refused(browser: Browser, changed: dict[str, Any]) -> None:
    answer = browser.go(HEDY, **changed).come_back()
    assert (answer.status_code, COOKIE in answer.cookies) == (403, False)
    assert "ID token" in answer.text


@pytest.mark.parametrize("signed_by", ["stranger", "secret", "nobody"])
def test_a_token_that_the_provider_did_not_sign_is_refused(browser: Browser, signed_by: str) -> None:
    browser.provider.signed_by = signed_by
    answer = browser.go(HEDY).come_back()
    assert (answer.status_code, COOKIE in answer.cookies) == (403, False)


def test_the_answer_of_the_provider_belongs_to_the_browser_that_asked(browser: Browser) -> None:
    theirs = Browser(browser.api, browser.provider).go(HEDY)
    mine = browser.go(HEDY)
    code, state = (parse_qs(urlsplit(mine.callback).query)[name][0] for name in ("code", "state"))
    refused = [
        mine.come_back(theirs.callback),  # the state is another browser's
        mine.come_back(f"/oidc/callback?code={code}"),
        mine.come_back(f"/oidc/callback?code={code}&state="),
        mine.come_back(cookie=""),
        mine.come_back(cookie="imprint_oidc=a.b.c.d"),
        mine.come_back(cookie=mine.cookie[:-2] + "2f"),  # another way on
        mine.come_back(f"/oidc/callback?error=access_denied&state={state}"),
    ]
    assert {(answer.status_code, COOKIE in answer.cookies) for answer in refused} == {(403, False)}
    # PKCE: a code that was issued to another attempt is worth nothing, also in this browser.
    stolen = parse_qs(urlsplit(theirs.callback).query)["code"][0]
    assert mine.come_back(f"/oidc/callback?code={stolen}&state={state}").status_code == 403
    assert mine.come_back().status_code == 303
    assert mine.come_back().status_code == 403  # a code works once


def test_an_attempt_ends_after_ten_minutes(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oidc_pages, "_LASTS_S", -1)
    assert browser.go(HEDY).come_back().status_code == 403


def test_who_gives_up_at_the_provider_is_told(browser: Browser) -> None:
    answer = browser.go(None).come_back()
    assert (answer.status_code, "did not sign you in" in answer.text) == (403, True)


def test_a_provider_may_change_its_key(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("web.oidc._KEYS_S", 3600.0)  # no second of the machine's time decides
    assert browser.go(HEDY).come_back().status_code == 303
    browser.provider.new_key("second")
    assert browser.go(HEDY).come_back().status_code == 403  # it was asked within that time
    monkeypatch.setattr("web.oidc._KEYS_S", 0.0)
    assert browser.go(HEDY).come_back().status_code == 303


def test_a_provider_that_does_not_answer_is_an_error_that_says_so(site: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = OidcProvider("http://127.0.0.1:9", CLIENT_ID, None, "openid", "http://testserver/oidc/callback")
    monkeypatch.setitem(site.client.app.state._state, "oidc", gone)  # type: ignore[attr-defined]
    answer = site.call("GET", "/oidc/sign-in")
    assert (answer.status_code, "does not answer" in answer.text) == (503, True)


def test_the_page_offers_it_where_it_is_set(site: Api, lone_api: Api) -> None:
    site.client.cookies.clear()
    assert 'href="/oidc/sign-in?next=%2F"' in site.call("GET", "/sign-in").text
    assert "/oidc/" not in lone_api.call("GET", "/sign-in").text


def test_every_route_of_operators_knows_viewers_from_operators(lone_api: Api) -> None:
    """By the two tables of all routes: a viewer may get, and no more; an owner may neither."""
    rows: list[Any] = [row for row in (*test_matrix.ROWS, *test_page_matrix.ROWS) if row.scope == "operate"]
    assert len(rows) > 20
    secrets = {scope: lone_api.token(None, scope) for scope in ("view", "operate", "read")}
    cookies = {}
    for scope, secret in secrets.items():
        lone_api.client.cookies.clear()
        asked = {"token": secret, "owner": "ada"}
        cookies[scope] = lone_api.call("POST", "/sign-in", headers=HERE, data=asked).cookies[COOKIE]
    lone_api.client.cookies.clear()
    for row, (scope, secret) in itertools.product(rows, secrets.items()):
        path = row.path.replace("{tokenId}", "token_none").replace("{sha256}", "0" * 64).replace("{owner}", "nobody")
        path = path.replace("{id}", "job_none").replace("{scope}", "nothing")
        headers = {"cookie": f"{COOKIE}={cookies[scope]}"} if path.startswith("/operators") else {}
        is_allowed = scope == "operate" or (scope == "view" and row.method == "GET")
        answer = lone_api.call(row.method, path, None if headers else secret, headers={**HERE, **headers})
        assert (answer.status_code != 403) is is_allowed, (row, scope, answer.text[:200])
