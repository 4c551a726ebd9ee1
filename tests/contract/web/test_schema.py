"""Schemathesis: whatever the OpenAPI document allows, and much that it does not, gets an answer that is documented."""

import json
import re
import traceback
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from jobs import service
from tests.contract.web.conftest import Api, served
from tests.contract.web.test_page_matrix import a_drawing, a_ready_training
from tests.samples import FULL

EXAMPLES = 6 if FULL else 3  # of each operation, and as many that break the document
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]


There = dict[str, str]


@pytest.fixture(scope="module")
def described(lone_api: Api) -> Iterator[tuple[Any, There, dict[str, str]]]:
    """The document, and what its paths may name: a training and a picture that are there."""
    secret = lone_api.token(None, "read", "train", "operate")
    owner = lone_api.token("ada")
    images = lone_api.upload(owner, 5)
    job_id = lone_api.train(owner, images).json()["id"]
    service.cancel(lone_api.services, job_id)
    drawing_id = a_drawing(lone_api, a_ready_training(lone_api, owner))
    there = {"trainings": job_id, "operate": job_id, "influencer": "rex", "imageId": images[0], "drawingId": drawing_id}
    headers = {"Authorization": f"Bearer {secret}", "Imprint-Owner": "ada"}
    with served(lone_api, web_rate_per_s=1e6) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json", timeout=60), there, headers


def test_every_answer_is_documented(described: tuple[Any, There, dict[str, str]]) -> None:
    document, there, headers = described
    called, failures = 0, list[str]()
    for operation in (result.ok() for result in document.get_all_operations()):
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            @hypothesis.settings(
                max_examples=EXAMPLES, database=None, suppress_health_check=list(hypothesis.HealthCheck)
            )
            def answers(case: Any) -> None:
                nonlocal called
                called += 1
                aim(case, there)
                # No broker runs here, and /readyz says so: 503, as documented.
                checks = CHECKS[1:] if case.path == "/readyz" else CHECKS
                case.call_and_validate(headers=headers, checks=checks)

            try:
                answers()
            except hypothesis.errors.Unsatisfiable:
                assert mode is GenerationMode.NEGATIVE  # nothing can be wrong about a route that takes nothing
            except (schemathesis.errors.SchemathesisError, BaseExceptionGroup) as failure:
                failures.append(f"{operation.label}: {''.join(traceback.format_exception_only(failure))}")
    assert failures == [], "\n\n".join(failures)
    assert called > 150


def aim(case: Any, there: There) -> None:
    """Half of the calls are for what is there; the others are for what is not, or for a new subject."""
    given = case.path_parameters or {}
    if len(str(given.get("id", ""))) % 2:
        given["id"] = there[case.path.split("/")[2]]
        if "imageId" in given:
            given["imageId"] = there["imageId"]
    if len(str(given.get("drawingId", ""))) % 2:
        given["drawingId"] = there["drawingId"]


def test_every_reference_leads_to_a_component(described: tuple[Any, There, dict[str, str]]) -> None:
    document = described[0].raw_schema
    named = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document)))
    assert named
    assert named - set(document["components"]["schemas"]) == set()
