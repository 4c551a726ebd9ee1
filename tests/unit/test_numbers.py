"""`true` is no number: every numeric field of every request model refuses it."""

import importlib
import pkgutil
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

import jobs
import web.models
from core.numbers import NumbersAreNotBools, _is_numeric
from jobs.requests.envelope import Envelope
from jobs.subjects.drawing import WorkflowRequest
from jobs.view import View
from training.spec import TrainSpec
from web.models.common import RequestModel, ResponseModel


def models(kind: type[BaseModel] = NumbersAreNotBools) -> set[type[BaseModel]]:
    for package in (jobs, web.models):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    found = set(kind.__subclasses__())
    return found | {one for sub in found for one in models(sub)}


FIELDS = [
    (model, name)
    for model in sorted(models(), key=lambda model: model.__name__)
    for name, field in model.model_fields.items()
    if _is_numeric(field.annotation)
]


@pytest.mark.parametrize(("model", "name"), FIELDS, ids=[f"{model.__name__}.{name}" for model, name in FIELDS])
@pytest.mark.parametrize("value", [True, False])
def test_a_bool_is_no_number(model: type[BaseModel], name: str, value: bool) -> None:
    given = model.model_fields[name].alias or name
    with pytest.raises(ValidationError) as raised:
        model.model_validate({given: value})
    faults = {fault["loc"][0]: fault["msg"] for fault in raised.value.errors()}
    assert faults[given].endswith("should be a number, not true or false")


def test_all_requests_are_among_them() -> None:
    asked = {model for model, _ in FIELDS}
    assert {TrainSpec, WorkflowRequest} <= asked
    assert {Envelope, RequestModel} <= models()
    assert len(FIELDS) > 20
    for module in pkgutil.iter_modules(web.models.__path__, "web.models."):
        for one in vars(importlib.import_module(module.name)).values():
            if isinstance(one, type) and issubclass(one, BaseModel) and one is not BaseModel:
                assert issubclass(one, (ResponseModel, NumbersAreNotBools, View)), f"{one} is a request of another kind"


@pytest.mark.parametrize("field", ["rank", "alpha", "learning_rate", "epochs", "max_steps", "seed", "batch_size"])
def test_a_recipe_names_the_field(field: str) -> None:
    recipe: dict[str, Any] = {"base_model": "sd15", "trigger_word": "sks", "seed": 1, field: True}
    with pytest.raises(ValidationError) as raised:
        TrainSpec.model_validate(recipe)
    assert [fault["loc"] for fault in raised.value.errors()] == [(field,)]


def test_numbers_and_switches_stay_what_they_are() -> None:
    recipe: dict[str, Any] = {"base_model": "sd15", "trigger_word": "sks", "seed": 1, "rank": 8, "aspect_buckets": True}
    spec = TrainSpec.model_validate({**recipe, "data": {"flip": True}, "alpha": 8})
    assert (spec.rank, spec.alpha, spec.aspect_buckets, spec.data.flip) == (8, 8.0, True, True)
