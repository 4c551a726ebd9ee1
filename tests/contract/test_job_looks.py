"""What a training shows on the way, where the database and the store keep it; and what one that ends early costs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import NotFound
from jobs import history, keys, service
from jobs import previews as job_previews
from jobs.lifecycle import transitions
from jobs.lifecycle.lease_keeper import HeldLease
from jobs.lifecycle.leases import Lease, claim_stage
from jobs.services import Services
from jobs.stages.control import JobControl, StoredCheckpoints, StoredPreviews
from storage.tables.jobs import Stage
from tests.contract.jobs import balances, events, put_at
from training.ports import Progress


def at_work(services: Services, job_id: str) -> Lease:
    put_at(services, job_id, Stage.TRAIN)
    with services.database.writing() as session:
        claimed = claim_stage(session, job_id, Stage.TRAIN, "somebody", 30)
        assert claimed is not None
        return claimed[0]


def test_the_validation_loss_is_in_the_job_and_its_events(services: Services, job_id: str) -> None:
    lease = at_work(services, job_id)
    control = JobControl(services.database, lease, HeldLease(lease), 60)
    control.report(Progress(1, 500, 0.5, 10.0))
    assert service.get(services, job_id).validation_loss is None
    assert "validation_loss" not in events(services, job_id, "progress")[-1]
    control.report(Progress(50, 500, 0.4, 9.0, 0.02, 0.25))
    assert service.get(services, job_id).validation_loss == 0.25
    assert events(services, job_id, "progress")[-1]["validation_loss"] == 0.25


def test_previews_are_told_and_found_where_the_page_looks(services: Services, job_id: str) -> None:
    lease = at_work(services, job_id)
    previews = StoredPreviews(services.store, services.database, lease)
    for step, prompt in ((50, 0), (50, 1), (100, 0), (50, 0)):
        previews.save(step, prompt, b"%d %d" % (step, prompt))
    assert [(content["step"], content["prompt"]) for content in events(services, job_id, "preview")] == [
        (50, 0), (50, 1), (100, 0), (50, 0)
    ]  # fmt: skip
    names = job_previews.names(services, job_id)
    assert len(list(services.store.list(keys.previews(job_id)))) == 3, "the same picture again replaces it"
    assert len(names) == 3
    rows = job_previews.by_prompt(names)
    assert {prompt: [step for step, _ in pictures] for prompt, pictures in rows.items()} == {"0": [50, 100], "1": [50]}
    assert services.store.get(events(services, job_id, "preview")[2]["key"]) == b"100 0"


@pytest.mark.parametrize(
    "call",
    [
        service.get,
        service.cancel,
        service.retry,
        service.quote_again,
        service.cost_of_cancelling,
        service.get_lora,
        history.newest_event,
        history.position,
        job_previews.names,
        lambda services, job_id, owner_id: service.events(services, job_id, owner_id=owner_id),
        lambda services, job_id, owner_id: service.download(services, job_id, Path("none"), owner_id),
        lambda services, job_id, owner_id: job_previews.get(services, job_id, "0-000000050_0.png", owner_id),
    ],
)
def test_another_owner_is_told_that_there_is_no_such_job(
    services: Services, job_id: str, call: Callable[[Services, str, str], object]
) -> None:
    before = service.get(services, job_id)
    with pytest.raises(NotFound, match=f"^there is no job {job_id}$"):
        call(services, job_id, "a stranger")
    assert service.get(services, job_id) == before


def test_one_that_ended_early_costs_the_steps_that_were_done(services: Services, job_id: str) -> None:
    """500 steps were held for: 50 credits. It ended after 120."""
    lease = at_work(services, job_id)
    with services.database.writing() as session:
        transitions.advance(session, lease, services.settings, step=120, total_steps=120, validation_loss=0.2)
    put_at(services, job_id, Stage.SETTLE)
    with services.database.writing() as session:
        assert transitions.settle(session, job_id, services.settings)
    view = service.get(services, job_id)
    assert (view.status, view.step, view.total_steps, view.validation_loss) == ("ready", 120, 120, 0.2)
    assert view.credits.to_dict() == {"held": 0, "charged": 12, "refunded": 38}
    assert balances(services)["spent"] == 12


def test_a_checkpoint_that_is_dropped_is_gone_and_again_is_fine(services: Services, job_id: str) -> None:
    kept = StoredCheckpoints(services.store, services.database, at_work(services, job_id))
    for step in (5, 10):
        kept.save(step, json.dumps(step).encode())
    kept.drop(5)
    kept.drop(5)
    assert kept.steps() == [10]
    assert kept.load(10) == b"10"
