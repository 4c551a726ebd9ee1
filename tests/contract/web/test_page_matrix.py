"""Every route of the page, called by everybody who must not: signed out, with a session that is forged, over or
revoked, for another owner, without the scope, from another site. A route that is not in a table fails test_matrix.
"""

import base64
import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa
from sqlmodel import col

from core.clock import utcnow
from jobs import keys, service
from jobs.deletion import requests
from jobs.drawings import drawing_transitions, drawings
from jobs.owners import sessions, tokens
from jobs.subjects import captions
from storage.tables.access import ApiToken
from storage.tables.drawings import DrawnFile
from storage.tables.jobs import Job, Status
from tests.contract.web.conftest import Api
from web.pages import assets
from web.pages.session import COOKIE

HERE = {"origin": "http://testserver"}
ADA = "/subjects/rex"


@dataclass(frozen=True)
class Row:
    """A route of the page: the scope it needs (None: open to all), its answer to the owner, and to a stranger."""

    method: str
    path: str
    scope: str | None
    own: int
    stranger: int = 404
    form: dict[str, str] = field(default_factory=dict)
    query: str = ""


_START = {"key": "0" * 32, "credits_shown": "9999", "trigger_word": "hush", "base_model": "sd15", "beside": "yes"}
_CROP = {"left": "0", "top": "0", "width": "400", "height": "400"}
ROWS = [
    Row("GET", "/sign-in", None, 200),
    Row("POST", "/sign-in", None, 422),
    Row("GET", "/sign-in/{secret}", None, 404),
    Row("POST", "/sign-in/{secret}", None, 404),
    Row("GET", "/oidc/sign-in", None, 404),  # it is not set here; tests/contract/web/test_oidc.py
    Row("GET", "/oidc/callback", None, 404),
    Row("GET", "/static/{name}", None, 200),
    Row("POST", "/language", None, 303),
    Row("GET", "/signed-in", "read", 200, 200),
    Row("POST", "/sign-out", "read", 303, 303),
    Row("GET", "/", "read", 200, 200),
    Row("GET", "/subjects", "read", 303, 303, query="?name=rex"),
    Row("GET", "/subjects/{id}", "read", 200, 200),
    Row("GET", "/subjects/{id}/images/{imageId}", "read", 200),
    Row("GET", "/trainings", "read", 200, 200),
    Row("GET", "/trainings/{id}", "read", 200),
    Row("GET", "/trainings/{id}/events", "read", 200),
    Row("GET", "/trainings/{id}/previews/{name}", "read", 404),
    Row("GET", "/trainings/{id}/download", "read", 409),
    Row("GET", "/trainings/{id}/card", "read", 409),
    Row("GET", "/trainings/{id}/workflow", "read", 409),
    Row("POST", "/trainings/{id}/comfyui", "train", 409),
    Row("GET", "/trainings/{id}/samples", "read", 404),
    Row("POST", "/trainings/{id}/checkpoints/{step}/deliver", "train", 404),
    Row("GET", "/trainings/{id}/compare", "read", 200),
    Row("GET", "/subjects/{id}/recipe", "read", 200, 200),
    Row("GET", "/subjects/{id}/recipe.json", "read", 200, 200),
    Row("POST", "/subjects/{id}/recipe", "train", 303, 303, {"rank": "8"}),
    Row("GET", "/subjects/{id}/recipe/preset", "read", 200, 200, query="?kind=style"),
    Row("POST", "/subjects/{id}/recipe/preset", "train", 200, 200, {"kind": "style"}),
    Row("POST", "/subjects/{id}/recipe/import", "train", 303, 303, {"text": "{}"}),
    Row("GET", "/subjects/{id}/captions", "read", 200, 200),
    Row("GET", "/subjects/{id}/images/{imageId}/large", "read", 200),
    Row("GET", "/subjects/{id}/images/{imageId}/seen", "read", 200),
    Row("GET", "/subjects/{id}/images/{imageId}/edit", "read", 200),
    Row("GET", "/account", "read", 200, 200),
    Row("GET", "/operators", "operate", 200),
    Row("GET", "/operators/pictures/{sha256}", "operate", 404),
    Row("POST", "/operators/pictures/{sha256}/decide", "operate", 404, form={"verdict": "accept"}),
    Row("POST", "/operators/trainings/{id}/decide", "operate", 404, form={"verdict": "accept"}),
    Row("GET", "/operators/search", "operate", 200, query="?q=ada"),
    Row("GET", "/operators/audit", "operate", 200, query="?owner=ada"),
    Row("GET", "/operators/audit.csv", "operate", 200, query="?owner=ada"),
    Row("GET", "/operators/jobs/{id}", "operate", 200),
    Row("GET", "/operators/owners/{owner}", "operate", 200),
    Row("POST", "/operators/jobs/{id}/cancel", "operate", 303),
    Row("POST", "/operators/jobs/{id}/retry", "operate", 303, form={"key": "4" * 32}),
    Row("POST", "/operators/jobs/{id}/refund", "operate", 409, form={"key": "5" * 32, "amount": "1"}),
    Row("POST", "/operators/owners/{owner}/grant", "operate", 303, form={"key": "6" * 32, "amount": "1"}),
    Row("POST", "/operators/owners/{owner}/tokens", "operate", 200, form={"name": "browser"}),
    Row("POST", "/operators/owners/{owner}/limits", "operate", 303, form={"pictures": "500"}),
    Row("POST", "/operators/owners/{owner}/rename", "operate", 409, form={"new": "ada"}),
    Row("POST", "/operators/tokens/{tokenId}/revoke", "operate", 303),
    Row("POST", "/operators/pauses", "operate", 303, form={"scope": "family:sdxl", "reason": "upgrade"}),
    Row("POST", "/operators/pauses/end", "operate", 303, form={"scope": "family:sdxl"}),
    Row("POST", "/operators/workers/drain", "operate", 404, form={"worker": "nobody"}),
    Row("POST", "/subjects/{id}/settings", "train", 303, 303, {"trigger_word": "hush", "base_model": "sd15"}),
    Row("POST", "/subjects/{id}/automatic", "train", 303, 303, {"on": "no"}),
    Row("POST", "/subjects/{id}/images", "train", 422, 422),
    Row("POST", "/subjects/{id}/uploads", "train", 200, 200, query="?name=a.zip&size=9"),
    Row("POST", "/subjects/{id}/images/{imageId}/caption", "train", 303, form={"text": "hush"}),
    Row("POST", "/subjects/{id}/captions/{imageId}", "train", 303, form={"text": "hush, hush", "then": "next"}),
    Row("POST", "/subjects/{id}/captions/all/replace", "train", 303, 303, {"find": "hush, ", "replacement": ""}),
    Row("POST", "/subjects/{id}/captions/all/prepend", "train", 303, 303, {"text": "hush "}),
    Row("POST", "/subjects/{id}/captions/all/undo", "train", 303, 409),
    Row("POST", "/subjects/{id}/captions/all/import", "train", 422, 422),
    Row("POST", "/subjects/{id}/images/{imageId}/crop", "train", 303, form=_CROP),
    Row("POST", "/subjects/{id}/images/{imageId}/uncrop", "train", 303),
    Row("GET", "/subjects/{id}/images/{imageId}/mask", "read", 404),
    Row("POST", "/subjects/{id}/images/{imageId}/mask", "train", 422),
    Row("POST", "/subjects/{id}/images/{imageId}/unmask", "train", 303),
    Row("POST", "/subjects/{id}/train", "train", 303, 409, _START),
    Row("POST", "/subjects/{id}/images/{imageId}/remove", "train", 303),
    Row("POST", "/subjects/{id}/notes/dismiss", "train", 303, 303),
    Row("POST", "/trainings/{id}/cancel", "train", 303),
    Row("POST", "/trainings/{id}/review", "train", 409),
    Row("POST", "/trainings/{id}/again", "train", 303, form={"key": "2" * 32, "beside": "yes"}),
    Row("POST", "/trainings/{id}/draw", "train", 409, form={"key": "3" * 32, "prompt": "hush"}),
    Row("GET", "/drawings/{drawingId}", "read", 303),
    Row("GET", "/drawings/{drawingId}/images/{number}", "read", 200),
    Row("POST", "/drawings/{drawingId}/cancel", "train", 409),
    Row("POST", "/account/sessions/{sessionId}/end", "read", 303),
    Row("POST", "/account/sessions/end-others", "read", 303, 303),
    Row("GET", "/account/entries.csv", "read", 200, 200),
    Row("POST", "/account/notices", "train", 303, 303),
    Row("POST", "/account/tokens", "train", 200, 200, {"name": "shop", "days": "30"}),
    Row("POST", "/account/tokens/{tokenId}/revoke", "train", 303),
    Row("POST", "/account/delete", "train", 422, 422),  # the owner's name is not repeated
    Row("POST", "/deletions/{deletionId}/undo", "train", 409),  # it has begun
    Row("POST", "/subjects/{id}/delete", "train", 303),
    Row("POST", "/trainings/{id}/delete", "train", 303),
]
GUARDED = [row for row in ROWS if row.scope is not None]


@dataclass
class Page:
    """Ada's pictures, her cancelled training and her drawing, and a way to call a row with a cookie."""

    api: Api
    job_id: str
    image_ids: list[str]
    session_id: str
    drawing_id: str
    deletion_id: str
    token_id: str

    def call(self, row: Row, cookie: str | None = None, **headers: str) -> httpx2.Response:
        path = row.path.replace("{imageId}", self.image_ids[-1]).replace("{sessionId}", self.session_id)
        path = path.replace("{tokenId}", self.token_id).replace("{owner}", "ada")
        path = path.replace("{drawingId}", self.drawing_id).replace("{number}", "0").replace("{step}", "50")
        path = path.replace("{name}", "imprint.css" if "static" in path else "1-000000010_0.png")
        subject = "old" if row.path == "/subjects/{id}/delete" else "rex"
        path = path.replace("{secret}", "x" * 32)
        path = path.replace("{deletionId}", self.deletion_id).replace("{sha256}", "0" * 64)
        path = path.replace("{id}", subject if row.path.startswith("/subjects") else self.job_id) + row.query
        files = (
            [("files", ("a.png", b"no picture"))]
            if row.method == "POST" and path.endswith(("/images", "/import", "/mask"))
            else None
        )
        data = None if row.method == "GET" else row.form
        cookies = {"cookie": f"{COOKIE}={cookie}"} if cookie is not None else {}
        sent = {**({} if row.method == "GET" else HERE), **cookies, **headers}
        self.api.client.cookies.clear()
        return self.api.call(row.method, path, headers=sent, data=data, files=files)

    def sign_in(self, secret: str, owner: str = "", **headers: str) -> httpx2.Response:
        self.api.client.cookies.clear()
        data = {"token": secret, "owner": owner, "next": ADA}
        return self.api.call("POST", "/sign-in", headers={**HERE, **headers}, data=data)

    def cookie(self, secret: str, owner: str = "") -> str:
        answer = self.sign_in(secret, owner)
        assert answer.status_code == 303, answer.text
        return str(answer.cookies[COOKIE])

    def is_told_in(self, answer: httpx2.Response) -> bool:
        return any(secret in answer.text for secret in (self.job_id, *self.image_ids, "hush"))


@pytest.fixture(scope="module")
def page(lone_api: Api) -> Page:
    ada = lone_api.token("ada")
    images = lone_api.upload(ada, 7)
    job_id = lone_api.train(ada, images[:6]).json()["id"]
    service.cancel(lone_api.services, job_id)
    captions.set_all(lone_api.services, "ada", "rex", {images[0]: "hush"})  # so that there is a change to take back
    deletion = requests.delete_picture(lone_api.services, lone_api.upload(ada, 2, subject="old")[0])
    drawing_id = a_drawing(lone_api, a_ready_training(lone_api, ada))
    _, token = tokens.create(lone_api.services, "another", owner_id="ada")
    return Page(lone_api, job_id, images, a_session(lone_api, ada), drawing_id, deletion.id, token.id)


def a_session(api: Api, secret: str) -> str:
    """The id of a session of the token's owner."""
    token = tokens.authenticate(api.services, secret)
    assert token is not None
    return sessions.begin(api.services, token, token.owner_id)


def a_ready_training(api: Api, secret: str) -> str:
    """The id of a training whose LoRA can be drawn with."""
    job_id = api.train(secret, api.upload(secret, 6)).json()["id"]
    ready = {"status": Status.READY, "lora_key": keys.lora(job_id), "lora_sha256": "0" * 64, "lora_bytes": 6}
    api.services.store.put(keys.lora(job_id), b"a file")
    with api.services.database.writing() as session:
        session.connection().execute(sa.update(Job).where(col(Job.id) == job_id).values(**ready))
    return str(job_id)


def a_drawing(api: Api, job_id: str) -> str:
    """A ready drawing of Ada's with one picture; its id."""
    made = drawings.submit(api.services, {"owner_id": "ada", "job_id": job_id, "prompt": "on a beach", "seed": 7})
    api.services.store.put(f"{keys.drawing(made.drawing_id)}000.png", b"a drawn picture")
    with api.services.database.writing() as session:
        claimed = drawing_transitions.claim(session, made.drawing_id, "worker", 30)
        assert claimed is not None
        file = DrawnFile(number=0, seed=7, with_lora=True, sha256="0" * 64, bytes=15)
        claimed[0].write(session, pictures=[file])
        assert drawing_transitions.finish(session, claimed[0], api.services.settings)
    return made.drawing_id


def of(row: Row) -> str | None:
    return None if row.scope == "operate" else "ada"


@pytest.mark.parametrize("row", GUARDED, ids=lambda row: f"{row.method} {row.path}")
def test_a_guarded_page(page: Page, row: Row) -> None:
    api = page.api
    assert row.scope is not None
    owner, secret = of(row), api.token(of(row), row.scope)
    good = page.cookie(secret, "" if owner else "ada")

    # Signed out, a forged cookie, or a session whose token is gone: the way to the sign-in, and nothing else.
    gone = api.token(owner, row.scope)
    of_gone = page.cookie(gone, "" if owner else "ada")
    found = tokens.authenticate(api.services, gone)
    assert found is not None
    with api.services.database.writing() as session:
        session.get_one(ApiToken, found.id).revoked_at = utcnow()
    body, _, signature = good.partition(".")
    for cookie in (None, "", "x", f"{body}.", f"{body[:-4]}AAAA.{signature}", of_gone, secret):
        answer = page.call(row, cookie)
        assert (answer.status_code, answer.headers["location"].split("?")[0]) == (303, "/sign-in"), answer.text
        assert not page.is_told_in(answer) or page.job_id in row.path

    # A token that may not; another owner's, for whom there is nothing here; a form from elsewhere.
    others = {"read", "train", "operate"} - {row.scope}
    if row.path not in ("/sign-out", "/signed-in"):  # which need no scope
        answer = page.call(row, page.cookie(api.token(None, *others), "ada"))
        assert answer.status_code == 403
        assert not page.is_told_in(answer)
    if owner:
        answer = page.call(row, page.cookie(api.token("bob", row.scope)))
        assert answer.status_code == row.stranger, answer.text
        assert not page.is_told_in(answer)
    if row.method == "POST":
        for headers in (
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {"origin": ""},
            {"sec-fetch-site": "cross-site"},
        ):
            assert page.call(row, good, **headers).status_code == 403

    # And the owner is let in: else the refusals above would prove nothing.
    answer = page.call(row, good)
    assert answer.status_code == row.own, answer.text
    if "text/html" in answer.headers.get("content-type", ""):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not re.search(r"<script(?! type=\"module\" src=\"/static/)|<style|\sstyle=|\son[a-z]+=", answer.text)
        assert "http://" not in answer.text.replace("http://www.w3.org", "")
        assert "https://" not in answer.text


def test_open_pages_need_nothing(page: Page) -> None:
    for row in ROWS:
        if row.scope is None:
            assert page.call(row).status_code == row.own, row


def test_a_session_is_a_cookie_that_only_the_server_reads(page: Page) -> None:
    secret = page.api.token("ada")
    answer = page.sign_in(secret)
    cookie = answer.headers["set-cookie"]
    assert answer.headers["location"] == ADA
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert secret not in cookie
    assert page.api.client.base_url.scheme == "http"
    assert "Secure" not in cookie
    again = page.api.call("POST", "https://testserver/sign-in", headers={"origin": "https://testserver"},
                          data={"token": secret, "next": "//evil.example"})  # fmt: skip
    assert "Secure" in again.headers["set-cookie"]
    assert again.headers["location"] == "/"
    out = page.call(next(row for row in ROWS if row.path == "/sign-out"), answer.cookies[COOKIE])
    assert f'{COOKIE}="";' in out.headers["set-cookie"]
    assert page.sign_in(secret, origin="https://evil.example").status_code == 403


def test_a_refused_sign_in_says_why(page: Page) -> None:
    service_token = page.api.token(None, "read")
    for secret, owner, message in (
        ("imp_" + "x" * 43, "", "unknown, expired or revoked"),
        ("x" * 400, "", "unknown, expired or revoked"),
        (page.api.token("ada"), "bob", "belongs to another owner"),
        (service_token, "", "Enter the owner"),
    ):
        answer = page.sign_in(secret, owner)
        assert answer.status_code == 422
        assert message in answer.text
        assert secret not in answer.text
    assert page.sign_in(service_token, "ada").status_code == 303
    operator = page.sign_in(page.api.token(None, "operate"))
    assert operator.headers["location"] == "/operators"


def test_from_a_mail_the_strict_cookie_comes_with_the_second_request(page: Page) -> None:
    row = next(row for row in ROWS if row.path == "/trainings/{id}")
    first = page.call(row, **{"sec-fetch-site": "cross-site"})
    assert first.status_code == 200
    assert 'http-equiv="refresh"' in first.text
    assert not page.is_told_in(first)


def test_it_never_costs_more_than_was_shown(page: Page) -> None:
    row = next(row for row in ROWS if row.path == "/subjects/{id}/train")
    cookie = page.cookie(page.api.token("ada"))
    before = page.api.call("GET", "/api/account", page.api.token("ada")).json()["held"]
    dearer = Row(row.method, row.path, row.scope, 409, form={**row.form, "credits_shown": "1", "key": "1" * 32})
    answer = page.call(dearer, cookie)
    assert (answer.status_code, "instead of 1," in answer.text) == (409, True), answer.text
    odd = Row(row.method, row.path, row.scope, 422, form={**row.form, "max_steps": "many", "resolution": "65"})
    assert page.call(odd, cookie).status_code == 422
    assert page.api.call("GET", "/api/account", page.api.token("ada")).json()["held"] == before


def test_what_people_typed_is_text(page: Page) -> None:
    """Names, words and captions come out as they went in, and never as HTML."""
    cookie = page.cookie(page.api.token("ada"))
    odd = '"><script>alert(1)</script>'
    form = {"trigger_word": odd, "class_word": odd, "base_model": "sd15"}
    assert page.call(Row("POST", "/subjects/{id}/settings", "train", 303, form=form), cookie).status_code == 303
    for path in (ADA, "/", f"/subjects/{odd.replace('/', '')}"):
        text = page.api.call("GET", path, headers={"cookie": f"{COOKIE}={cookie}"}).text
        assert "<script>alert" not in text
    restored: dict[str, Any] = {"trigger_word": "hush", "base_model": "sd15"}
    page.call(Row("POST", "/subjects/{id}/settings", "train", 303, form=restored), cookie)


def test_samples_stand_in_a_row_for_each_prompt(page: Page) -> None:
    """By step; of a step that was made again in a later attempt, the later."""
    for attempt, step, prompt in ((1, 0, 0), (1, 250, 0), (2, 250, 0), (1, 0, 1)):
        page.api.services.store.put(keys.preview(page.job_id, attempt, step, prompt, "png"), b"a picture")
    cookie = page.cookie(page.api.token("ada"))
    text = page.call(next(row for row in ROWS if row.path == "/trainings/{id}"), cookie).text
    rows = [re.findall(r'previews/([^"]+)" alt="([^"]+)"', row) for row in text.split('<th scope="row">')[1:]]
    assert rows == [
        [
            ("1-000000000_0.png", "Prompt 1, after step 0"),
            ("2-000000250_0.png", "Prompt 1, after step 250"),
        ],
        [("1-000000000_1.png", "Prompt 2, after step 0")],
    ]
    shown = page.api.call("GET", f"/trainings/{page.job_id}/previews/2-000000250_0.png",
                          headers={"cookie": f"{COOKIE}={cookie}"})  # fmt: skip
    assert (shown.status_code, shown.content) == (200, b"a picture")
    large = page.api.call("GET", f"/trainings/{page.job_id}/samples?prompt=0&step=250",
                          headers={"cookie": f"{COOKIE}={cookie}"}).text  # fmt: skip
    assert re.findall(r'<img src="[^"]*/previews/([^"]+)"', large) == ["1-000000000_0.png", "2-000000250_0.png"]


def test_a_first_visit_gets_the_styles_in_the_page(api: Api) -> None:
    """By their hashes, which the policy of that page allows. Scripts and later visits get links."""
    browser = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    first = api.call("GET", "/sign-in", headers=browser)
    api.client.cookies.clear()
    [within] = re.findall("<style>(.*?)</style>", first.text, re.S)
    digest = base64.b64encode(hashlib.sha256(within.encode()).digest()).decode()
    assert f"style-src 'self' 'sha256-{digest}'" in first.headers["content-security-policy"]
    assert "unsafe" not in first.headers["content-security-policy"]
    assert first.text.count('media="print"') == len(re.findall('<link rel="stylesheet"', first.text)) == 2
    known = {"cookie": f"{assets.COOKIE}={first.cookies[assets.COOKIE]}"}
    for headers in ({**browser, **known}, {"accept": "*/*"}, {**browser, **known, "accept-language": "de"}):
        later = api.call("GET", "/sign-in", headers=headers)
        assert "<style" not in later.text
        assert 'media="print"' not in later.text
        assert "sha256" not in later.headers["content-security-policy"]
        assert "set-cookie" not in later.headers
    old = api.call("GET", "/sign-in", headers={**browser, "cookie": f"{assets.COOKIE}=0"})
    assert "<style>" in old.text
    api.client.cookies.clear()
