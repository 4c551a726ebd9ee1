"""One name is one owner, however it is spelled, at every door; and names that earlier versions stored."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx2
import pytest
from click.testing import CliRunner
from sqlmodel import SQLModel

import cli.generate
import cli.main
import cli.notices
import cli.operations.accounts
import cli.operations.owners
import cli.operations.sessions
import cli.operations.tokens
import cli.output.terminal
from core.errors import IllegalMove, LoraNotReady, NotFound, SpecInvalid
from core.settings import Settings
from credits import ledger
from jobs import service
from jobs.notices import notices
from jobs.owners import accounts, tokens
from jobs.owners import unusable_names as owners
from jobs.requests import quotes
from jobs.services import Services
from jobs.stages import intake
from jobs.subjects import drawing, loras, subject_settings
from storage.owners import OWNED
from tasks.rabbitmq.model_training import parse_message
from tests.contract.jobs import balances
from tests.contract.web.conftest import Api, make_api, served

NAME = "José"
SPELLINGS = ["José", "Jose\u0301", "  José\t", "\u3000Jose\u0301 "]
UNSEEN = ["", "bo\u200bb", "bob\x1b[1m", "\u202ebob", "bo\u00a0b"]


def test_every_table_that_names_an_owner_is_known() -> None:
    named = {table.name for table in SQLModel.metadata.sorted_tables if "owner_id" in table.columns}
    assert named == set(OWNED)


# ---- every door -----------------------------------------------------------------------------------------------


def request_of(services: Services, owner: str) -> dict[str, Any]:
    images = [intake.store_picture(services, NAME, "rex", b"picture %d" % number) for number in range(5)]
    return {
        "owner_id": owner, "subject_id": "rex", "base_model": "sd15", "trigger_word": "sks", "resolution": 64,
        "max_steps": 10, "images": images,
    }  # fmt: skip


def by_submit(services: Services, owner: str) -> str:
    return service.submit(services, request_of(services, owner)).owner_id


def by_quote(services: Services, owner: str) -> str:
    return NAME if quotes.quote(services, request_of(services, owner)).available == 100 else "another"


def by_profile_set(services: Services, owner: str) -> str:
    wanted = {"train_automatically": True, "base_model": "sd15", "trigger_word": "sks"}
    request_of(services, owner)
    for view in service.jobs(services, owner_id=NAME, active=True):
        service.cancel(services, view.job_id)
    intake.store_picture(services, NAME, "rex", uuid4().bytes)  # another set
    subject_settings.change(services, NAME, "rex", wanted)
    training = subject_settings.profile_set_completed(services, owner, "rex").training
    return training.owner_id if training else "another"


def by_message(services: Services, owner: str) -> str:
    asked = request_of(services, owner)
    body = {"style_id": "rex", "owner_id": owner or " ", "image_paths": asked["images"], "resolution": 64}
    parsed = parse_message(json.dumps(body | {"max_steps": 10}).encode(), None, services.settings)
    return service.submit(services, parsed.arguments, parsed.origin).owner_id


def by_resolve(services: Services, owner: str) -> str:
    job_id = service.submit(services, request_of(services, NAME)).job_id
    with pytest.raises(LoraNotReady) as raised:
        loras.resolve(services, owner, "rex")
    return NAME if raised.value.details.get("job_id") == job_id else "another"


def by_drawing(services: Services, owner: str) -> str:
    return drawing.WorkflowRequest.model_validate({"owner_id": owner, "subject_id": "rex", "workflow": {}}).owner_id


def by_token(services: Services, owner: str) -> str:
    return str(tokens.create(services, "test", owner_id=owner)[1].owner_id)


def by_grant(services: Services, owner: str) -> str:
    before = accounts.balance(services, NAME).granted
    return NAME if accounts.grant(services, owner, 1).granted == before + 1 else "another"


DOORS: dict[str, Callable[[Services, str], str]] = {
    "train_lora": by_submit, "quote": by_quote, "profile_set_completed": by_profile_set, "model_training": by_message,
    "resolve": by_resolve, "generate": by_drawing, "token": by_token, "grant": by_grant,
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_every_spelling_is_one_account_and_what_cannot_be_seen_is_refused(services: Services, door: str) -> None:
    accounts.grant(services, NAME, 100, key="welcome")
    for spelling in SPELLINGS:
        assert DOORS[door](services, spelling) == NAME, ascii(spelling)
    for name in UNSEEN:
        with pytest.raises((SpecInvalid, ValueError)) as raised:
            DOORS[door](services, name)
        assert "owner" in str(raised.value), ascii(name)
    assert owners.list_odd(services) == []


def test_the_header_and_the_sign_in_name_the_same_owner(settings: Settings) -> None:
    for api in make_api(settings):
        check_web(api)


def check_web(api: Api) -> None:
    accounts.grant(api.services, NAME, 77)
    secret = api.token(None, "read")
    own = api.token(NAME, "read")
    with served(api) as url:

        def account(token: str, name: bytes) -> httpx2.Response:
            headers = [(b"Authorization", f"Bearer {token}".encode()), (b"Imprint-Owner", name)]
            return httpx2.get(f"{url}/api/account", headers=headers, timeout=60, trust_env=False)

        for spelling in SPELLINGS:
            for value in (quote(spelling).encode(), spelling.strip("\u3000 \t").encode()):
                answer = account(secret, value)
                assert (answer.status_code, answer.json()["granted"]) == (200, 77), value
        assert account(own, b"Jose%CC%81").json()["granted"] == 77
        assert account(own, b"Jose").status_code == 403
        for value in (b"Jos\xe9", b"bo%E2%80%8Bb", b"bo%00b", b"%20"):
            answer = account(secret, value)
            assert answer.status_code == 400, value
            assert "Imprint-Owner" in answer.json()["detail"]
    for spelling in SPELLINGS:
        form = {"token": secret, "owner": spelling.strip("\t")}
        signed_in = api.call("POST", "/sign-in", headers={"origin": "http://testserver"}, data=form)
        assert signed_in.status_code == 303
        assert "77" in api.call("GET", "/account").text
        api.client.cookies.clear()
    refused = api.call(
        "POST", "/sign-in", headers={"origin": "http://testserver"}, data={"token": secret, "owner": "bo\u200bb"}
    )
    assert refused.status_code == 422
    assert "is invisible" in refused.text


COMMANDS = [
    ["grant", "{}", "5"],
    ["balance", "{}"],
    ["notices", "{}", "--email", "jose@example.org"],
    ["token", "create", "test", "--owner", "{}"],
    ["list", "--owner", "{}"],
    ["receivers", "enable", "{}", "https://app.example"],
    ["resolve", "rex", "--owner", "{}"],
    ["sessions", "end", "--owner", "{}"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_commands_take_every_spelling(services: Services, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (
        cli.main,
        cli.operations.accounts,
        cli.notices,
        cli.operations.tokens,
        cli.generate,
        cli.output.terminal,
        cli.operations.sessions,
    ):
        monkeypatch.setattr(module, "services", lambda: services)
    for spelling in SPELLINGS:
        done = CliRunner().invoke(cli.main.imprint, [word.format(spelling) for word in command])
        assert done.exit_code in (0, 1), done.output  # 1: this owner has no LoRA, no receiver
    assert accounts.balance(services, NAME).granted == (20 if command[0] == "grant" else 0)
    assert (notices.get(services, NAME).email is not None) == (command[0] == "notices")
    assert owners.list_odd(services) == []
    for name in UNSEEN:
        done = CliRunner().invoke(cli.main.imprint, [word.format(name) for word in command])
        assert done.exit_code == 2, done.output


# ---- names of earlier versions --------------------------------------------------------------------------------


def store_odd(services: Services, name: str, amount: int) -> None:
    """An account as an earlier version stored it."""
    with services.database.writing() as session:
        ledger.grant(session, name, amount, key=f"welcome {name!a}")


def test_odd_names_are_listed_and_renamed_but_never_merged(services: Services) -> None:
    for number, name in enumerate(("ada ", "bo\u200bb", "José".encode().decode("latin-1"), "田中"), start=1):
        store_odd(services, name, number)
    found = {odd.owner_id: odd for odd in owners.list_odd(services)}
    assert {name: (odd.intended, odd.available) for name, odd in found.items()} == {
        "ada ": ("ada", 1), "bo\u200bb": (None, 2), "JosÃ©": ("José", 3),
    }  # fmt: skip
    assert "which exists too" in found["ada "].reason
    assert "ZERO WIDTH SPACE" in found["bo\u200bb"].reason

    with pytest.raises(IllegalMove, match="the owner ada exists, and two accounts are never merged"):
        owners.rename(services, "ada ", "ada")
    with pytest.raises(NotFound):
        owners.rename(services, "eve", "mallory")
    with pytest.raises(SpecInvalid):
        owners.rename(services, "ada ", "bo\u200bb")
    assert owners.rename(services, "bo\u200bb", " bob ") == "bob"
    assert accounts.balance(services, "bob").available == 2
    assert accounts.balance(services, "ada ").available == 1
    assert balances(services)["available"] == 1000
    assert {odd.owner_id for odd in owners.list_odd(services)} == {"ada ", "JosÃ©"}


def test_the_command_lists_and_renames_them(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cli.operations.owners, cli.output.terminal):
        monkeypatch.setattr(module, "services", lambda: services)
    store_odd(services, "bo\u200bb", 2)
    listed = CliRunner().invoke(cli.main.imprint, ["owners"])
    assert "'bo\\u200bb'" in listed.output
    done = CliRunner().invoke(cli.main.imprint, ["owners", "rename", "bo\\u200bb", "bob"])
    assert (done.exit_code, done.output.strip()) == (0, "'bo\\u200bb' is now bob")
    assert "every owner has a name" in CliRunner().invoke(cli.main.imprint, ["owners"]).output
