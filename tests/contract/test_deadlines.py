"""A step that hangs: its heartbeat would renew its lease for ever, so the lease has an end of its own."""

import time
from collections.abc import Iterator

import pytest

from core.errors import HandOver, LeaseLost
from core.telemetry import metrics
from core.telemetry.metrics import Measure
from jobs.lifecycle.lease_keeper import LeaseKeeper
from jobs.lifecycle.leases import claim_stage
from jobs.services import Services
from jobs.stages.stage_runner import NothingToDo, claim, holding_lease
from storage.tables.jobs import Stage
from tests.contract.jobs import messages, put_at, row
from tests.site import until


class Counts:
    """What this process counts."""

    def __init__(self) -> None:
        self.found: list[tuple[str, tuple[str, ...]]] = []

    def record(self, measure: Measure, amount: float, labels: tuple[str, ...]) -> None:
        self.found.append((measure.name, labels))


@pytest.fixture
def counts() -> Iterator[Counts]:
    made = Counts()
    metrics.set_sink(made)
    yield made
    metrics.set_sink(None)


def test_a_step_that_hangs_loses_its_lease_and_another_worker_gets_it(
    services: Services, job_id: str, counts: Counts
) -> None:
    put_at(services, job_id, Stage.UPLOAD)
    with services.database.writing() as session:
        claimed = claim_stage(session, job_id, Stage.UPLOAD, "hanging", lease_s=0.3)
    assert claimed is not None
    lease, _ = claimed
    begun = time.monotonic()  # before the limit starts, or a busy machine finds it too short
    with LeaseKeeper(services.database, 0.3).keeping(lease, limit_s=0.8) as held:
        assert held.lost.wait(20)
        assert time.monotonic() - begun > 0.8, "it was renewed until then"

        def is_free() -> bool:
            try:
                claim(services, job_id, Stage.UPLOAD)
            except NothingToDo:
                return False
            return True

        until(is_free, 60, "the lease has expired")
        with pytest.raises(LeaseLost), services.database.writing() as session:
            lease.renew(session, 30)
    assert ("imprint_stages_overdue", ("upload",)) in counts.found


def test_what_still_runs_when_the_machine_vanishes_is_handed_over_once(services: Services, job_id: str) -> None:
    put_at(services, job_id, Stage.UPLOAD)
    lease, _ = claim(services, job_id, Stage.UPLOAD)

    def work() -> None:
        with holding_lease(services, lease) as held:
            services.lease_keeper.hand_over_all("the machine vanishes")
            services.lease_keeper.hand_over_all("the machine vanishes")
            assert held.lost.is_set()
            assert messages(services, job_id) == ["launch", "launch"]
            assert (row(services, job_id).lease_until, row(services, job_id).attempt) == (None, 0)
            claim(services, job_id, Stage.UPLOAD)
            raise HandOver  # what it does at last, after all

    with pytest.raises(NothingToDo):
        work()
    assert row(services, job_id).attempt == 1, "the attempt that was handed over does not count"
    assert row(services, job_id).lease_until is not None, "the other worker keeps it"
    assert messages(services, job_id) == ["launch", "launch"]


def test_every_stage_has_a_limit(services: Services, job_id: str) -> None:
    put_at(services, job_id, Stage.UPLOAD)
    lease, _ = claim(services, job_id, Stage.UPLOAD)
    with holding_lease(services, lease) as held:
        assert held.limit_s == services.settings.stage_timeout_s
