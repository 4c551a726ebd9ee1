"""What one caller may occupy on a web process, and how it says that sweeps are late."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa

from core.clock import utcnow
from core.settings import Settings
from jobs.lifecycle import sweeps
from jobs.owners import tokens
from storage.tables.jobs import PeriodicRun
from tests.contract.web.conftest import REX, Api, make_api, problem
from tests.site import MASCOT
from web.routes.service import Readiness, _check


@pytest.fixture
def small(settings: Settings) -> Iterator[Api]:
    """An app with small limits."""
    limits = {"streams_per_caller": 1, "streams_max": 2, "uploads_per_caller": 1, "uploads_max": 2}
    yield from make_api(settings.model_copy(update=limits))


def test_event_streams_of_a_caller_and_of_all(small: Api) -> None:
    ada, bob, cleo = (small.token(owner) for owner in ("ada", "bob", "cleo"))
    job_id = small.train(ada, small.upload(ada)).json()["id"]
    path = f"/api/trainings/{job_id}/events"
    streams = small.client.app.state.streams  # type: ignore[attr-defined]
    with streams.limit.hold(f"{token_id(small, ada)} ada"):
        refused = small.call("GET", path, ada)
        problem(refused, 429, "rate_limited")
        assert refused.headers["retry-after"]
        with streams.limit.hold("another caller"):
            problem(small.call("GET", path, small.token("ada")), 503, "unavailable")
    problem(small.call("GET", path, bob), 404, "not_found")
    problem(small.call("GET", path, cleo), 404, "not_found")
    # A stream that has ended counts no longer.
    assert small.call("POST", f"/api/trainings/{job_id}/cancel", ada).status_code == 200
    for _ in range(3):
        assert small.call("GET", path, ada).status_code == 200


def token_id(api: Api, secret: str) -> str:
    found = tokens.authenticate(api.services, secret)
    assert found is not None
    return found.id


def test_uploads_of_a_caller(small: Api) -> None:
    """A second upload at the same time is refused; after the first one, it is taken."""
    ada = small.token("ada")
    file = sorted(MASCOT.glob("*.png"))[0].read_bytes()
    uploads = small.client.app.state.uploads  # type: ignore[attr-defined]
    caller = f"{token_id(small, ada)} ada"
    with uploads._count.hold(caller):
        refused = small.call("POST", f"{REX}/images", ada, files=[("files", ("a.png", file))])
        problem(refused, 429, "rate_limited")
    with uploads._bytes.hold(caller, small.services.settings.upload_bytes_max // 2 - 1000):
        problem(small.call("POST", f"{REX}/images", ada, files=[("files", ("a.png", file))]), 429, "rate_limited")
    assert small.call("POST", f"{REX}/images", ada, files=[("files", ("a.png", file))]).status_code == 201
    assert not uploads._count._open
    assert not uploads._bytes._open


def test_addresses_are_no_large_body(small: Api) -> None:
    body = b'{"urls": ["' + b"x" * 300_000 + b'"]}'
    headers = {"content-type": "application/json"}
    problem(small.call("POST", f"{REX}/images", small.token("ada"), content=body, headers=headers), 413, "too_large")


def test_late_sweeps_are_red(api: Api) -> None:
    services, period = api.services, timedelta(seconds=api.services.settings.sweep_s)
    begun = utcnow()
    assert _check(services, begun).sweeps == "ok"  # just started: the first sweep may come yet
    long_ago = begun - 10 * period
    assert _check(services, long_ago).sweeps == "late"
    sweeps.sweep_done(services)
    assert _check(services, long_ago).sweeps == "ok"
    with services.database.writing() as session:
        session.execute(sa.update(PeriodicRun).values(finished_at=begun - 4 * period))
    late = _check(services, long_ago)
    assert (late.sweeps, late.status) == ("late", "away")
    sweeps.sweep_done(services)  # a second time is an update
    assert _check(services, long_ago).sweeps == "ok"
    assert Readiness().check(services).sweeps == "ok"
