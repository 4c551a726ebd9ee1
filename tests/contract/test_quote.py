"""The time that a quote names: of trainings of the same kind here, however many others there were since."""

from datetime import timedelta

import pytest

from core.clock import utcnow
from jobs import service
from jobs.requests import quotes
from jobs.requests.prices import work_of_step
from jobs.services import Services
from jobs.specs import spec_columns
from storage.tables.jobs import Job, Status
from tests.contract.jobs import request
from training.spec import TrainSpec


def trained(services: Services, spec: TrainSpec, seconds_per_step: float, minutes_ago: int, count: int = 1) -> None:
    with services.database.writing() as session:
        for number in range(count):
            session.add(
                Job(
                    id=f"job_{spec.family}_{spec.batch_size}_{number}",
                    owner_id="bob",
                    subject_id="cat",
                    request_sha256="",
                    status=Status.READY,
                    seconds_per_step=seconds_per_step,
                    finished_at=utcnow() - timedelta(minutes=minutes_ago),
                    **spec_columns(spec),
                )
            )


def test_a_quote_is_measured_though_fifty_newer_trainings_were_of_another_kind(services: Services) -> None:
    asked = request(services)
    assert not quotes.quote(services, asked).measured
    mine = TrainSpec.model_validate(service.submit(services, asked).spec)
    trained(services, mine, 7.0, minutes_ago=60)
    trained(services, mine.model_copy(update={"family": "sdxl"}), 99.0, minutes_ago=1, count=60)
    trained(services, mine.model_copy(update={"batch_size": 9}), 88.0, minutes_ago=1, count=60)
    quote = quotes.quote(services, asked)
    assert quote.measured
    assert quote.seconds == quote.steps * 7.0


def test_a_quote_knows_that_text_encoders_are_trained(services: Services) -> None:
    """Also where only trainings without them have been measured here, or inversely."""
    plain = request(services)
    trained_too = {**plain, "adapter": {"text_encoder": True}}
    before, guessed = (quotes.quote(services, asked) for asked in (plain, trained_too))
    spec = TrainSpec.model_validate(service.submit(services, plain).spec)
    with_text = spec.model_copy(update={"adapter": spec.adapter.model_copy(update={"text_encoder": True})})
    assert work_of_step(with_text) > 1
    assert guessed.seconds / before.seconds == pytest.approx(work_of_step(with_text), rel=0.01)
    assert guessed.credits_per_step > before.credits_per_step
    assert guessed.memory_gb is not None
    assert guessed.memory_gb > (before.memory_gb or 0)
    trained(services, spec, 7.0, minutes_ago=60)
    assert quotes.quote(services, plain).seconds == before.steps * 7.0
    assert quotes.quote(services, trained_too).seconds == pytest.approx(
        before.steps * 7.0 * work_of_step(with_text), rel=0.01
    )
