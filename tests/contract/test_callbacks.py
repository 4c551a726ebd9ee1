"""Celery tasks that are kept with a job: what its acceptance and its end bring them, on both databases."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from core.clock import utcnow
from core.errors import ImprintError
from core.settings import Settings
from jobs import service
from jobs.lifecycle import sweeps, transitions
from jobs.notices import callbacks, dead_letters, outbox_handlers
from jobs.services import Services
from jobs.stages.stage_runner import claim
from notifications import outbox
from notifications.tables import MESSAGE
from storage.tables.jobs import EndTask, Stage
from tests.contract.jobs import balances, events, messages, put_at, request, row, task_call

ON_END = {"task": "shop.notice", "queue": "shop", "kwargs": {"order": 7}}


def sent(services: Services, job_id: str) -> list[tuple[str, str, str]]:
    """The callbacks in the outbox in their order: whose, what, and where to."""
    columns = MESSAGE.c.task_id, MESSAGE.c.topic, MESSAGE.c.destination
    query = sa.select(*columns).where(MESSAGE.c.job_id == job_id, MESSAGE.c.kind == "callback")
    with services.database.reading() as session:
        return [tuple(one) for one in session.execute(query.order_by(MESSAGE.c.sequence))]


def test_an_accepted_task_gets_its_callbacks_at_once_and_only_once(services: Services) -> None:
    arguments = request(services, idempotency_key="task:a")
    job_id = service.submit(services, arguments, call=task_call("a", waits=False)).job_id
    # A message that is delivered twice.
    assert service.submit(services, arguments, call=task_call("a", waits=False)).job_id == job_id
    expected = [("a", "callback", "celery://shop")] * 2 + [("a", "chain", "celery://shop")]
    assert sent(services, job_id) == expected
    service.cancel(services, job_id)
    assert sent(services, job_id) == expected
    balances(services)


def test_every_waiting_task_gets_its_own_end(services: Services) -> None:
    arguments = request(services, idempotency_key="k", on_end=ON_END)
    job_id = service.submit(services, arguments, call=task_call("a")).job_id
    assert service.submit(services, arguments, call=task_call("b", callbacks=[], chain=[])).job_id == job_id
    assert sent(services, job_id) == []
    put_at(services, job_id, Stage.SETTLE)
    with services.database.writing() as session:
        transitions.settle(session, job_id, services.settings)
    ready = [
        ("a", "result", "celery://results"),
        *[("a", "callback", "celery://shop")] * 2,
        ("a", "chain", "celery://shop"),
    ]
    at_end = [*ready, ("b", "result", "celery://results"), (None, "on_end", "celery://shop")]
    assert sent(services, job_id) == at_end
    # One that comes after the end does not wait.
    service.submit(services, arguments, call=task_call("c", chain=[]))
    assert sent(services, job_id)[len(at_end) :] == [("c", *rest) for _, *rest in ready[:3]]
    balances(services)


def test_error_callbacks_follow_the_result_of_a_job_that_did_not_end_ready(services: Services) -> None:
    job_id = service.submit(services, request(services), call=task_call("a")).job_id
    service.cancel(services, job_id)
    # A callback without a queue goes to the operator's.
    assert sent(services, job_id) == [("a", "result", "celery://results"), ("a", "errback", "celery://celery")]
    error = callbacks.failure_of(service.get(services, job_id))
    assert error is not None
    assert str(error) == "cancelled: cancelled by the owner"
    assert error.details == {"code": "cancelled", "message": "cancelled by the owner", "job_id": job_id, "details": {}}


def test_callers_that_race_for_one_key_all_get_their_callbacks(services: Services) -> None:
    arguments = request(services, idempotency_key="k")
    with ThreadPoolExecutor(8) as pool:
        views = list(pool.map(lambda name: service.submit(services, arguments, call=task_call(name)), "abcdefgh"))
    (job_id,) = {view.job_id for view in views}
    service.cancel(services, job_id)
    assert sorted(one[0] for one in sent(services, job_id) if one[1] == "result") == list("abcdefgh")
    balances(services)


def test_callers_that_race_with_the_end_of_the_job_lose_nothing(services: Services) -> None:
    arguments = request(services, idempotency_key="k")
    job_id = service.submit(services, arguments).job_id
    with ThreadPoolExecutor(9) as pool:
        ended = pool.submit(service.cancel, services, job_id)
        list(pool.map(lambda name: service.submit(services, arguments, call=task_call(name)), "abcdefgh"))
        ended.result()
    assert sorted(one[0] for one in sent(services, job_id) if one[1] == "result") == list("abcdefgh")
    balances(services)


def test_a_retry_keeps_the_task_of_its_end(services: Services) -> None:
    job_id = service.submit(services, request(services, on_end=ON_END)).job_id
    service.cancel(services, job_id)
    again = service.retry(services, job_id).job_id
    assert row(services, again).on_end == EndTask.model_validate(ON_END)


# ---- launches that end in an error before a worker has claimed the stage ---------------------------------------


def newest_launch(services: Services, job_id: str) -> str | None:
    with services.database.reading() as session:
        return outbox.newest(session, job_id, "launch")


@pytest.mark.parametrize("stage", list(Stage))
def test_a_job_whose_launches_fail_before_the_claim_fails_after_the_third(services: Services, stage: Stage) -> None:
    job_id = service.submit(services, request(services)).job_id
    if stage is not Stage.PREPROCESS:
        put_at(services, job_id, stage)
    for count in (1, 2):
        launch = newest_launch(services, job_id)
        assert sweeps.repair_job(services, job_id, launch)
        assert not sweeps.repair_job(services, job_id, launch), "each launch counts once"
        assert (row(services, job_id).failed_launches, row(services, job_id).status) == (
            count,
            row(services, job_id).status,
        )
        assert messages(services, job_id).count("launch") == count + 1
    assert sweeps.repair_job(services, job_id, newest_launch(services, job_id))
    job = row(services, job_id)
    assert (job.status, job.failure_code) == ("failed", "internal")
    assert "3 launches ended in an error" in str(job.failure_message)
    assert "training.failed" in messages(services, job_id)
    assert balances(services) == {"held": 0, "spent": 0, "available": 1000}
    assert len(events(services, job_id, "retry")) == 2


def test_a_launch_that_was_claimed_or_replaced_is_not_counted(services: Services, job_id: str) -> None:
    put_at(services, job_id, Stage.TRAIN)
    launch = newest_launch(services, job_id)
    assert not sweeps.repair_job(services, job_id, "msg_0")
    assert not sweeps.repair_job(services, job_id)
    claim(services, job_id, Stage.TRAIN)
    assert not sweeps.repair_job(services, job_id, launch), "a worker is at it"
    assert row(services, job_id).failed_launches == 0
    with services.database.writing() as session:
        transitions.fail(session, job_id, ImprintError("it burnt"))
    assert not sweeps.repair_job(services, job_id, launch)


def test_a_stage_that_is_done_clears_the_count(services: Services, job_id: str) -> None:
    put_at(services, job_id, Stage.TRAIN)
    assert sweeps.repair_job(services, job_id, newest_launch(services, job_id))
    lease, _ = claim(services, job_id, Stage.TRAIN)
    with services.database.writing() as session:
        transitions.advance(session, lease, services.settings)
    assert row(services, job_id).failed_launches == 0


# ---- callbacks that are sent again until the application's worker has ended them --------------------------------


class Sender:
    """Celery, which sends what it is asked to, and keeps what is to be confirmed."""

    def __init__(self) -> None:
        self.confirmed: list[str | None] = []

    def store_result(self, call: Any, result: object, error: Any) -> None:
        pass

    def send_callback(self, call: Any, signature: Any, result: object, chain: Any = (), *, confirm: str | None) -> None:
        self.confirmed.append(confirm)

    def send_errback(self, call: Any, signature: Any, error: Any, *, confirm: str | None) -> None:
        self.confirmed.append(confirm)

    def send_task(self, name: str, queue: str | None, args: Any, kwargs: Any, *, confirm: str | None) -> None:
        self.confirmed.append(confirm)


@pytest.fixture
def confirming(monkeypatch: pytest.MonkeyPatch) -> Sender:
    monkeypatch.setattr(callbacks, "settings", lambda: Settings(_env_file=None, callback_confirm_s=60))
    return Sender()


def due(services: Services, job_id: str, after: timedelta) -> list[str]:
    """Claim what is due then of the job's callbacks."""
    with services.database.writing() as session:
        claimed = outbox.claim(session, utcnow() + after, ("callback", "confirmation"), 100, lease=timedelta(0))
    return [message.id for message in claimed if message.job_id == job_id]


def send_all(services: Services, job_id: str, sender: Sender) -> list[str]:
    """Send the callbacks of a job as the relay does; their ids."""
    ids: list[str] = []
    while found := due(services, job_id, timedelta(0)):
        for message_id in found:
            outbox_handlers.send_callback(services, message_id, sender)
        ids += found
    return ids


def test_a_callback_is_sent_again_until_it_has_ended(services: Services, confirming: Sender) -> None:
    """Later messages of the job do not wait for that, and a result needs no confirmation."""
    group = {"task": "celery.group", "subtask_type": "group", "kwargs": {"tasks": []}, "options": {}}
    call = task_call("a", errbacks=[{"task": "shop.failed", "options": {}}, group])
    job_id = service.submit(services, request(services, on_end=ON_END), call=call).job_id
    service.cancel(services, job_id)
    _, errback, _, on_end = send_all(services, job_id, confirming)
    assert confirming.confirmed == [errback, None, on_end]
    assert due(services, job_id, timedelta(seconds=50)) == []
    outbox_handlers.callback_ended(services, on_end)
    (confirmation,) = due(services, job_id, timedelta(seconds=61))
    outbox_handlers.send_callback(services, confirmation, confirming)
    assert confirming.confirmed[-1] == errback
    assert due(services, job_id, timedelta(seconds=110)) == []
    outbox_handlers.callback_ended(services, errback)
    assert due(services, job_id, timedelta(days=9)) == []


def test_a_callback_that_never_ends_becomes_a_dead_letter(services: Services, confirming: Sender) -> None:
    job_id = service.submit(services, request(services, on_end=ON_END)).job_id
    service.cancel(services, job_id)
    assert len(send_all(services, job_id, confirming)) == 1
    (confirmation,) = due(services, job_id, timedelta(seconds=61))
    for _ in range(5):
        outbox_handlers.send_callback(services, confirmation, confirming)
    assert len(confirming.confirmed) == 6
    (letter,) = dead_letters.list_dead_letters(services)
    assert (letter.id, letter.event) == (confirmation, "on_end")
    assert "has ended this task" in letter.reason
    dead_letters.redeliver(services, letter.id)
    assert due(services, job_id, timedelta(0)) == [letter.id]


def test_a_callback_that_ends_before_its_sending_is_recorded_is_not_sent_again(
    services: Services, confirming: Sender
) -> None:
    job_id = service.submit(services, request(services, on_end=ON_END)).job_id
    service.cancel(services, job_id)
    (on_end,) = due(services, job_id, timedelta(0))

    class Fast(Sender):
        def send_task(self, *given: Any, confirm: str | None, **options: Any) -> None:
            outbox_handlers.callback_ended(services, str(confirm))

    outbox_handlers.send_callback(services, on_end, Fast())
    assert due(services, job_id, timedelta(days=9)) == []
