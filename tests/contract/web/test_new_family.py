"""A family that is added in one record is offered, priced, submitted and documented: no other table names families."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import SpecInvalid
from jobs import service
from jobs.requests import quotes, training_request
from tests.contract.web.conftest import Api
from tests.made_up_family import FAR_AWAY, MADE_UP, registered

ROOT = Path(__file__).resolve().parents[3]
REQUEST: dict[str, Any] = {"owner_id": "ada", "subject_id": "rex", "trigger_word": "sks", "base_model": "made-up-1"}


@pytest.fixture(scope="module")
def images(lone_api: Api) -> list[str]:
    return lone_api.upload(lone_api.token("ada"))


@pytest.fixture
def made_up(lone_api: Api) -> Iterator[None]:
    with registered(MADE_UP):
        yield


def table() -> str:
    """The table of docs/base-models.md."""
    found = importlib.util.spec_from_file_location("tables", ROOT / "tools" / "tables.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    made: str = module.base_models()
    return made


@pytest.mark.usefixtures("made_up")
def test_it_is_offered_priced_submitted_and_documented(lone_api: Api, images: list[str]) -> None:
    asked = REQUEST | {"images": images}
    quote = quotes.quote(lone_api.services, asked | {"max_steps": 1000})
    assert (quote.credits, quote.licence) == (77, "MUP-1.0: no cats")
    view = service.submit(lone_api.services, asked | {"max_steps": 10})
    assert (view.spec.family, view.spec.rank, view.spec.alpha, view.spec.backend) == ("made-up", 6, 6.0, "local")
    assert "Made up 1" in page(lone_api)
    assert "made-up-1" in table()


def page(api: Api) -> str:
    """The page of a subject, with its choice of base models."""
    signed_in = api.token("ada")
    api.client.cookies.clear()
    answer = api.call("POST", "/sign-in", headers={"origin": "http://testserver"}, data={"token": signed_in})
    assert answer.status_code < 400, answer.text
    return api.call("GET", "/subjects/rex").text


def test_a_family_without_code_trains_only_on_rented_gpus(lone_api: Api, images: list[str]) -> None:
    asked = REQUEST | {"images": images}
    with registered(FAR_AWAY):
        with pytest.raises(SpecInvalid) as refused:
            service.submit(lone_api.services, asked | {"backend": "local"})
        assert set(refused.value.faults) == {"backend"}
        assert "only on rented GPUs" in refused.value.faults["backend"]
        # Without a backend it is sent to rented GPUs, of which this installation has none.
        with pytest.raises(SpecInvalid, match="no ai-toolkit server is configured"):
            service.submit(lone_api.services, asked)


@pytest.mark.usefixtures("made_up")
def test_a_family_that_is_switched_off_is_refused_and_not_offered(lone_api: Api, images: list[str]) -> None:
    here = lone_api.services
    settings = here.settings.model_copy(update={"disabled_families": ["made-up"]})
    with pytest.raises(SpecInvalid, match="made-up is switched off"):
        training_request.parse(REQUEST | {"images": images}, settings, here.sources)
