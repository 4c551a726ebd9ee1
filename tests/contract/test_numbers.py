"""`true` is no number at any door: the HTTP API, tasks, messages, commands, and the settings of a subject."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import cli.output.terminal
import cli.submit
from cli.main import imprint
from core.errors import SpecInvalid
from core.settings import Settings
from jobs import service
from jobs.stages import intake
from tasks.rabbitmq.model_training import parse_message
from tests.contract.web.conftest import RECIPE, REX, Api, make_api, problem
from tests.site import MASCOT

SAID = "should be a number, not true or false"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    yield from make_api(Settings(_env_file=None, home=tmp_path_factory.mktemp("home"), web_rate_per_s=1e6))


def pictures(api: Api) -> list[str]:
    return [intake.store_picture(api.services, "ada", "rex", b"picture %d" % number) for number in range(5)]


def over_http(api: Api, values: dict[str, Any]) -> dict[str, str]:
    body = {**RECIPE, "imageIds": pictures(api)} | {camel(name): value for name, value in values.items()}
    answer = api.call("POST", f"{REX}/lora/train", api.token("ada"), json=body)
    return {snake(name): fault for name, fault in problem(answer, 422, "spec_invalid")["faults"].items()}


def by_settings(api: Api, values: dict[str, Any]) -> dict[str, str]:
    body = {"baseModel": "sd15", "recipe": {camel(name): value for name, value in values.items()}}
    answer = api.call("PATCH", f"{REX}/lora/settings", api.token("ada"), json=body)
    faults = problem(answer, 422, "spec_invalid")["faults"]
    return {snake(name.removeprefix("recipe.")): fault for name, fault in faults.items()}


def by_task(api: Api, values: dict[str, Any]) -> dict[str, str]:
    arguments = {"owner_id": "ada", "subject_id": "rex", "base_model": "sd15", "trigger_word": "sks"}
    with pytest.raises(SpecInvalid) as refused:
        service.submit(api.services, arguments | {"images": pictures(api)} | values)
    return refused.value.faults


def by_message(api: Api, values: dict[str, Any]) -> dict[str, str]:
    body = {"style_id": "rex", "owner_id": "ada", "image_paths": pictures(api)} | values
    parsed = parse_message(json.dumps(body).encode(), None, api.services.settings)
    with pytest.raises(SpecInvalid) as refused:
        service.submit(api.services, parsed.arguments, parsed.origin)
    return refused.value.faults


DOORS: list[Callable[[Api, dict[str, Any]], dict[str, str]]] = [over_http, by_settings, by_task, by_message]
NUMBERS = ["rank", "alpha", "learning_rate", "max_steps", "batch_size", "resolution", "seed"]


def camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_true_is_named_as_a_fault(api: Api, door: Callable[[Api, dict[str, Any]], dict[str, str]]) -> None:
    values: dict[str, Any] = dict.fromkeys(NUMBERS, True)
    faults = door(api, values | {"optimization": {"warmup_steps" if door in DOORS[2:] else "warmupSteps": True}})
    assert {name for name, fault in faults.items() if SAID in fault} >= {*NUMBERS, "optimization.warmup_steps"}, faults


def test_of_a_command(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cli.submit, cli.output.terminal):
        monkeypatch.setattr(module, "services", lambda: api.services)
    for file in sorted(MASCOT.glob("*.png"))[:5]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    command = ["submit", str(tmp_path), "--owner", "ada", "--trigger", "sks", "--set", "optimization.warmup_steps=true"]
    done = CliRunner().invoke(imprint, [*command, "--json"])
    assert (done.exit_code, SAID in done.stdout) == (2, True), done.output


def test_of_the_account(api: Api) -> None:
    answer = api.call("PATCH", "/api/account/notices", api.token("ada"), json={"lowCredits": True})
    assert SAID in problem(answer, 422, "spec_invalid")["faults"]["lowCredits"]
