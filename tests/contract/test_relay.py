"""What passes from stage to stage: the relay while what it needs is away, and a message that comes again too late."""

from datetime import timedelta
from pathlib import Path

import pytest

from core.clock import utcnow
from core.settings import Settings
from jobs import service
from jobs.notices import notices, outbox_handlers
from jobs.owners import accounts
from jobs.services import Services
from jobs.stages.stage_runner import AlreadyDone, NothingToDo, claim
from jobs.turns import RetryLater
from notifications import outbox, preferences, webhooks
from notifications.messages import Kind
from notifications.preferences import Preferences
from notifications.webhook_payload import NoticeJob
from storage.tables.jobs import Stage
from tasks.relay import relay
from tasks.stages import run
from tests.contract.jobs import GRANTED, put_at, request
from tests.outbox import due
from tests.servers.postgres import postgres_node


@pytest.mark.usefixtures("no_broker")
def test_what_no_broker_took_is_due_again_at_once(services: Services) -> None:
    """Not only when the relay's claim has run out: a broker that is back for ten seconds is enough."""
    jobs = [service.submit(services, request(services, seed=seed)).job_id for seed in (1, 2)]
    assert not relay(services)
    with services.database.reading() as session:
        assert [message.job_id for message in due(session, utcnow(), ["launch"])] == jobs


def test_a_database_that_is_away_fails_nobody_who_relays(tmp_path: Path) -> None:
    """Else a step that is done would count as failed, and what follows it in the chain would not be sent."""
    with postgres_node() as server:
        services = Services(Settings(_env_file=None, home=tmp_path, database_url=server.address))
        accounts.grant(services, "ada", GRANTED)
        service.submit(services, request(services))
        server.kill()
        assert not relay(services)
        services.database.close()


def test_a_message_whose_stage_is_done_lets_its_chain_go_on(services: Services, job_id: str) -> None:
    """A worker died between its commit and the next message: when its own message comes again, that one is sent."""
    put_at(services, job_id, Stage.UPLOAD)
    run(None, lambda: claim(services, job_id, Stage.TRAIN))
    assert refusal(services, job_id, Stage.DATASET) is AlreadyDone
    claim(services, job_id, Stage.UPLOAD)
    assert refusal(services, job_id, Stage.UPLOAD) is NothingToDo, "somebody is at it"
    put_at(services, job_id, Stage.TRAIN)
    assert refusal(services, job_id, Stage.UPLOAD) is NothingToDo, "it is not its turn yet"
    service.cancel(services, job_id)
    assert refusal(services, job_id, Stage.DATASET) is NothingToDo, "the job is final"


def refusal(services: Services, job_id: str, stage: Stage) -> type[Exception]:
    with pytest.raises(NothingToDo) as refused:
        claim(services, job_id, stage)
    return refused.type


@pytest.mark.usefixtures("no_broker")
@pytest.mark.parametrize("kind", ["notice", "mail"])
def test_what_waits_for_a_slot_is_sent_by_its_task_and_by_no_other_relay(services: Services, kind: Kind) -> None:
    """Each minute, one more task used to be sent for every webhook that waited while its owner's others hung."""
    with services.database.writing() as session:
        if kind == "notice":
            webhooks.put(session, NoticeJob(job_id="job", owner_id="ada"), "training.completed", "https://app.example")
        else:
            preferences.save(session, "ada", Preferences(email="ada@example.org"))
            notices.queue_not_started_mail(session, "ada", "mascot", "disabled", "a test")
    services.slots.total = 1
    assert services.slots.take("ada") == 0.0
    with services.database.writing() as session:
        (message,) = outbox.claim(session, utcnow(), [kind], lease=timedelta(seconds=1))
    tried_at = utcnow()
    with pytest.raises(RetryLater):
        (outbox_handlers.notify if kind == "notice" else notices.deliver_mail)(services, message.id)
    with services.database.reading() as session:
        assert due(session, tried_at + outbox.CLAIM, [kind]) == []
        assert len(due(session, utcnow() + 3 * outbox.CLAIM, [kind])) == 1, "its worker may have died"
