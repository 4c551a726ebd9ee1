"""Sessions of the page are listed, ended one by one or together, and end with their token; so do event streams."""

import threading
import time
from datetime import timedelta

import httpx2
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from cli.operations import sessions as session_commands
from core.clock import utcnow
from core.settings import Settings
from jobs import service
from jobs.owners import sessions, tokens
from jobs.stages import intake
from storage.tables.access import StoredSession
from tests.contract.web.conftest import RECIPE, Api, problem, served
from tests.site import until
from web.pages.session import COOKIE

HERE = {"origin": "http://testserver"}
ENDS_WITHIN_S = 10.0  # a stream is checked every two seconds


def sign_in(api: Api, secret: str, owner: str = "", browser: str = "a browser") -> str:
    api.client.cookies.clear()
    headers = {**HERE, "user-agent": browser}
    answer = api.call("POST", "/sign-in", headers=headers, data={"token": secret, "owner": owner})
    assert answer.status_code == 303, answer.text
    cookie = str(answer.cookies[COOKIE])
    api.client.cookies.clear()
    return cookie


def open_page(api: Api, cookie: str, path: str = "/account") -> httpx2.Response:
    return api.call("GET", path, headers={"cookie": f"{COOKIE}={cookie}"})


def post(api: Api, cookie: str, path: str) -> httpx2.Response:
    return api.call("POST", path, headers={**HERE, "cookie": f"{COOKIE}={cookie}"})


def is_in(api: Api, cookie: str) -> bool:
    answer = open_page(api, cookie)
    assert answer.status_code == 200 or answer.headers["location"].startswith("/sign-in"), answer.text
    return answer.status_code == 200


def test_sign_out_ends_the_session_and_not_only_the_cookie(api: Api) -> None:
    secret = api.token("ada")
    copied, other = sign_in(api, secret), sign_in(api, secret)
    assert post(api, copied, "/sign-out").status_code == 303
    assert not is_in(api, copied)
    assert is_in(api, other)


def test_they_are_listed_and_ended_on_the_page(api: Api) -> None:
    secret = api.token("ada")
    mine, stolen = sign_in(api, secret, browser="Mine/1.0"), sign_in(api, secret, browser='<script>"Theirs"/2.0')
    bobs = sign_in(api, api.token("bob"), browser="Bobs/3.0")
    page = open_page(api, mine).text
    assert "Mine/1.0" in page
    assert "&lt;script&gt;" in page
    assert "<script>" not in page.replace('<script type="module"', "")
    assert "Bobs" not in page
    assert "this browser" in page

    # Bob cannot end what is Ada's, nor see whether it is there.
    stolen_id, bobs_id = stolen.split(".")[0], bobs.split(".")[0]
    assert post(api, bobs, f"/account/sessions/{stolen_id}/end").status_code == 404
    assert is_in(api, stolen)
    assert post(api, mine, f"/account/sessions/{bobs_id}/end").status_code == 404

    assert post(api, mine, f"/account/sessions/{stolen_id}/end").status_code == 303
    assert not is_in(api, stolen)
    others = [sign_in(api, secret) for _ in range(3)]
    assert post(api, mine, "/account/sessions/end-others").status_code == 303
    assert [is_in(api, cookie) for cookie in (*others, mine, bobs)] == [False] * 3 + [True] * 2


def test_they_are_listed_and_ended_over_the_api(api: Api) -> None:
    secret = api.token("ada")
    cookie = sign_in(api, secret)
    [listed] = api.call("GET", "/api/account/sessions", secret).json()["sessions"]
    assert (listed["id"], listed["tokenName"], listed["browser"]) == (cookie.split(".")[0], "test", "a browser")
    path = f"/api/account/sessions/{listed['id']}"
    problem(api.call("DELETE", path, api.token("bob")), 404, "not_found")
    for _ in range(2):
        assert api.call("DELETE", path, secret).status_code == 204
    assert not is_in(api, cookie)
    assert api.call("GET", "/api/account/sessions", secret).json() == {"sessions": []}


def test_they_are_listed_and_ended_by_command(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_commands, "services", lambda: api.services)
    ada, bob = sign_in(api, api.token("ada")), sign_in(api, api.token("bob"))
    operator = sign_in(api, api.token(None, "operate"))

    def command(*arguments: str) -> str:
        done = CliRunner().invoke(session_commands.sessions, arguments)
        assert done.exit_code == 0, done.output
        return done.output

    listed = command()
    assert all(cookie.split(".")[0] in listed for cookie in (ada, bob, operator))
    assert bob.split(".")[0] not in command("--owner", " ada ")
    command("end", ada.split(".")[0])
    command("end", "--owner", "bob")
    assert (is_in(api, ada), is_in(api, bob)) == (False, False)
    assert open_page(api, operator, "/operators").status_code == 200
    assert "1 session(s) ended" in command("end", "--all")
    assert open_page(api, operator, "/operators").status_code == 303
    assert "no session is open" in command()


def test_they_end_with_their_token_and_with_their_time(api: Api) -> None:
    secret, lasting = api.token("ada"), api.token("ada")
    with_token, expired = sign_in(api, secret), sign_in(api, lasting)
    found = tokens.authenticate(api.services, secret)
    assert found is not None
    tokens.revoke(api.services, found.id)
    assert not is_in(api, with_token)
    with api.services.database.writing() as session:
        session.get_one(StoredSession, expired.split(".")[0]).expires_at = utcnow() - timedelta(seconds=1)
    assert not is_in(api, expired)
    assert sessions.list_sessions(api.services) == []
    sign_in(api, lasting)
    with api.services.database.reading() as session:
        assert session.get(StoredSession, expired.split(".")[0]) is None, "what has expired is removed"


def test_a_cookie_without_the_signature_of_this_installation_opens_nothing(api: Api) -> None:
    session_id, signature = sign_in(api, api.token("ada")).split(".")
    for cookie in (session_id, f"{session_id}.", f"{session_id}.{'0' * 64}", f"{signature}.{session_id}"):
        assert not is_in(api, cookie)


# ---- open streams ---------------------------------------------------------------------------------------------


def test_an_open_stream_ends_with_its_token_or_session_and_the_others_go_on(api: Api) -> None:
    images = [intake.store_picture(api.services, "ada", "rex", b"picture %d" % number) for number in range(5)]
    secrets = {name: api.token("ada") for name in ("revoked", "kept")}
    job_id = api.train(secrets["kept"], images, **RECIPE).json()["id"]
    cookie = sign_in(api, secrets["kept"])
    ended: dict[str, float] = {}
    opened: set[str] = set()

    def follow(name: str, path: str, headers: dict[str, str]) -> None:
        with httpx2.stream("GET", url + path, headers=headers, timeout=60, trust_env=False) as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():
                if line:
                    opened.add(name)
        ended[name] = time.monotonic()

    with served(api) as url:
        path = f"/trainings/{job_id}/events"
        calls = [(name, f"/api{path}", {"Authorization": f"Bearer {secret}"}) for name, secret in secrets.items()]
        calls.append(("signed out", path, {"cookie": f"{COOKIE}={cookie}"}))
        threads = [threading.Thread(target=follow, args=call) for call in calls]
        for thread in threads:
            thread.start()
        until(lambda: len(opened) == 3, 60, "three open streams")
        found = tokens.authenticate(api.services, secrets["revoked"])
        assert found is not None
        tokens.revoke(api.services, found.id)
        sessions.end(api.services, cookie.split(".")[0])
        until(lambda: set(ended) == {"revoked", "signed out"}, ENDS_WITHIN_S, "the two streams to end")
        # A client that reconnects is refused, and the other stream goes on to the end of the training.
        again = httpx2.get(url + calls[0][1], headers=calls[0][2], timeout=60, trust_env=False)
        assert again.status_code == 401
        service.cancel(api.services, job_id)
        until(lambda: "kept" in ended, ENDS_WITHIN_S, "the end of the training")
        for thread in threads:
            thread.join(30)


# ---- behind a proxy -------------------------------------------------------------------------------------------


def set_cookie(url: str, secret: str, proto: str | None) -> str:
    headers = {"origin": url, **({} if proto is None else {"x-forwarded-proto": proto})}
    answer = httpx2.post(f"{url}/sign-in", headers=headers, data={"token": secret}, timeout=60, trust_env=False)
    assert answer.status_code == 303, answer.text
    return str(answer.headers["set-cookie"])


def test_a_cookie_is_for_https_only_if_a_trusted_proxy_says_https(api: Api) -> None:
    secret = api.token("ada")
    trusted: list[str] | None
    for trusted in (None, ["127.0.0.1"], ["10.0.0.0/8", "127.0.0.0/8"]):
        with served(api, web_trusted_proxies=trusted) as url:
            assert "; Secure" in set_cookie(url, secret, "https"), trusted
            assert "Secure" not in set_cookie(url, secret, "http")
            assert "Secure" not in set_cookie(url, secret, None)
    with served(api, web_trusted_proxies=["192.0.2.7"]) as url:
        assert "Secure" not in set_cookie(url, secret, "https"), "this client is no proxy of ours"


@pytest.mark.parametrize("given", ["proxy.example", "*", "10.0.0.1/8", "10.0.0.0/33", ""])
def test_a_proxy_is_an_address_or_a_network(given: str) -> None:
    with pytest.raises(ValidationError, match="neither an address nor a network"):
        Settings(_env_file=None, web_trusted_proxies=[given])
