"""The outbox: nothing before the commit, everything after it, in order, by one relay at a time."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from core.clock import utcnow
from notifications import outbox, webhooks
from notifications.due import AT_ONCE, OWNER_AT_ONCE
from notifications.messages import Kind, Message
from notifications.retries import Outcome, Verdict
from notifications.webhook_payload import PROCESSING, Event, NoticeJob
from storage.database import Database
from tests import outbox as waiting
from tests.contract.processes import at_once

ALL: tuple[Kind, ...] = ("launch", "notice", "cleanup")
LEASE = timedelta(seconds=60)
URL = "https://app.example"


def put(database: Database, kind: Kind, job_id: str | None = "job", **options: Any) -> str:
    with database.writing() as session:
        return outbox.put(session, kind, job_id=job_id, payload=options.pop("payload", {}), **options)


def due(database: Database, kinds: Sequence[Kind] = ALL, at: datetime | None = None, limit: int = 100) -> list[str]:
    with database.reading() as session:
        return [message.id for message in waiting.due(session, at or utcnow(), kinds, limit)]


def claim(database: Database, at: datetime | None = None, limit: int = 100) -> list[Message]:
    with database.writing() as session:
        return outbox.claim(session, at or utcnow(), ALL, limit, lease=LEASE)


def queue_notice(database: Database, event: Event, job_id: str = "job", owner_id: str = "ada", url: str = URL) -> str:
    with database.writing() as session:
        return webhooks.put(session, NoticeJob(job_id=job_id, owner_id=owner_id), event, url)


def record(database: Database, message: Message, outcome: Outcome) -> None:
    with database.writing() as session:
        webhooks.record(session, message, outcome)


def again(seconds: float = 5) -> Outcome:
    return Outcome(Verdict.RETRY, "the receiver answered 500", utcnow() + timedelta(seconds=seconds), 500)


def test_a_message_comes_with_its_transaction_or_not_at_all(database: Database) -> None:
    with database.reading() as session:
        outbox.put(session, "launch", job_id="job", payload={})  # and never committed
    assert due(database) == []
    message_id = put(database, "launch", payload={"é": [1, None]}, owner_id="ada", topic="x", destination=URL)
    (message,) = claim(database)
    assert (message.id, message.kind, message.topic, message.job_id) == (message_id, "launch", "x", "job")
    assert (message.owner_id, message.destination, message.sequence, message.attempts) == ("ada", URL, 1, 0)
    assert message.payload == {"é": [1, None]}
    assert message.created_at == message.due_at
    assert abs(message.created_at - utcnow()) < timedelta(seconds=30)


def test_messages_are_due_from_their_time_on_and_by_kind(database: Database) -> None:
    now = utcnow()
    later = put(database, "cleanup", due_at=now + timedelta(seconds=30))
    launch, loose = put(database, "launch"), put(database, "launch", job_id=None)
    assert set(due(database)) == {launch, loose}
    assert due(database, ["cleanup"]) == []
    assert due(database, ["cleanup"], now + timedelta(seconds=30)) == [later]


def test_a_jobs_messages_are_numbered(database: Database, address: str) -> None:
    works = [partial(outbox.put, kind="launch", job_id="job", payload={}) for _ in range(8)]
    assert len(set(at_once(address, works))) == 8
    put(database, "launch", job_id="other")
    put(database, "launch", job_id=None)
    messages = claim(database)
    assert sorted(message.sequence for message in messages if message.job_id == "job") == list(range(1, 9))
    assert [message.sequence for message in messages if message.job_id != "job"] == [1, 0]


def test_notices_of_a_job_are_sent_one_after_another(database: Database) -> None:
    first, second = put(database, "notice"), put(database, "notice")
    other, launch = put(database, "notice", job_id="other"), put(database, "launch")
    assert {message.id for message in claim(database)} == {first, other, launch}
    assert due(database) == []  # the first is on its way
    with database.writing() as session:
        outbox.mark_failed(session, first, "no answer", utcnow() + timedelta(seconds=30))
    assert due(database) == []  # and waits to be sent again
    with database.writing() as session:
        assert outbox.mark_sent(session, first)
        assert not outbox.mark_sent(session, first)
    assert due(database) == [second]


def test_a_dead_notice_does_not_hold_up_the_next(database: Database) -> None:
    first, second = put(database, "notice"), put(database, "notice")
    with database.writing() as session:
        assert outbox.mark_failed(session, first, "x" * 9999, None)
        assert not outbox.mark_failed(session, first, "again", None)
    assert due(database) == [second]
    with database.reading() as session:
        assert [message.id for message in outbox.dead_letters(session)] == [first]
        assert outbox.find(session, first) is None
        assert outbox.find(session, second) is not None


def test_a_claim_runs_out(database: Database) -> None:
    message_id = put(database, "launch")
    assert [message.id for message in claim(database)] == [message_id]
    assert claim(database) == []
    assert [message.id for message in claim(database, utcnow() + LEASE)] == [message_id]


def test_many_relays_send_each_message_once(database: Database, address: str) -> None:
    sent = {put(database, "launch", job_id=f"job{number}") for number in range(40)}
    rounds = [partial(outbox.claim, now=utcnow(), kinds=ALL, limit=5, lease=LEASE)] * 6
    results = at_once(address, [rounds] * 8)
    claimed = Counter(message.id for turns in results for messages in turns for message in messages)
    assert set(claimed.values()) <= {1}
    assert set(claimed) <= sent
    while rest := claim(database, limit=5):  # relays that met each other may have left some to the next round
        claimed.update(message.id for message in rest)
    assert claimed == Counter(sent)


def test_a_receiver_that_is_down_leaves_room_for_others(database: Database) -> None:
    for number in range(20):
        put(database, "notice", job_id=f"down{number}", destination="https://down.example")
    other = put(database, "notice", job_id="up", destination="https://up.example")
    assert other in due(database, limit=2)


def test_few_notices_are_on_their_way_to_one_receiver(database: Database) -> None:
    for number in range(10):
        queue_notice(database, "training.completed", f"job{number}")
    elsewhere = queue_notice(database, "training.completed", "other", url="https://other.example")
    claimed = claim(database)
    assert len(claimed) == AT_ONCE + 1
    assert elsewhere in {message.id for message in claimed}
    assert claim(database) == []
    record(database, next(message for message in claimed if message.id != elsewhere), Outcome(Verdict.SENT, status=204))
    assert len(claim(database)) == 1


def test_few_webhooks_of_one_owner_are_on_their_way_however_many_receivers_it_has(database: Database) -> None:
    """Hundreds of webhooks to receivers that never answer used to be handed to tasks that only came back later."""
    for number in range(2 * OWNER_AT_ONCE):
        queue_notice(database, "training.completed", f"job{number}", "mallory", f"https://{number}.example")
    bobs = queue_notice(database, "training.completed", "bobs", "bob", "https://0.example")
    claimed = claim(database, limit=2 * OWNER_AT_ONCE)
    assert Counter(message.owner_id for message in claimed) == {"mallory": OWNER_AT_ONCE, "bob": 1}
    assert bobs in {message.id for message in claimed}
    assert claim(database) == []
    record(database, next(message for message in claimed if message.id != bobs), Outcome(Verdict.SENT, status=204))
    assert len(claim(database)) == 1


def test_a_receiver_that_is_down_is_asked_for_one_notice_at_a_time_and_spared(database: Database) -> None:
    for number in range(10):
        queue_notice(database, "training.completed", f"job{number}")
    first = claim(database)
    for message in first:
        record(database, message, again(seconds=-1))
    (second,) = claim(database)  # it has failed, so it gets a single one
    assert second.attempts == 1
    record(database, second, again(seconds=300))
    assert claim(database) == []  # and after a second failure, for a minute none
    (third,) = claim(database, utcnow() + timedelta(seconds=61))
    # It answers again: what was never tried is due at once, one after another as others have failed.
    record(database, third, Outcome(Verdict.SENT, status=204))
    for _ in range(10 - len(first) - (third.attempts == 0)):
        (one,) = claim(database)
        assert one.attempts == 0
        record(database, one, Outcome(Verdict.SENT, status=204))
    assert claim(database) == []


def test_a_refused_message_does_not_spare_its_receiver(database: Database) -> None:
    queue_notice(database, "training.completed", "job1")
    (refused,) = claim(database)
    other = queue_notice(database, "training.completed", "job2")
    record(database, refused, Outcome(Verdict.RETRY, "the receiver answered 404", utcnow() + LEASE, 404))
    assert [message.id for message in claim(database)] == [other]


def test_failed_attempts_are_counted_and_a_redelivery_starts_anew(database: Database) -> None:
    message_id = put(database, "notice")
    for attempts in range(1, 4):
        with database.writing() as session:
            outbox.mark_failed(session, message_id, "no answer", utcnow())
            message = outbox.find(session, message_id)
        assert message is not None
        assert message.attempts == attempts
    with database.writing() as session:
        outbox.mark_failed(session, message_id, "no answer", None)
        assert outbox.redeliver(session, message_id)
        assert not outbox.redeliver(session, "msg_none")
    (message,) = claim(database)
    assert (message.id, message.attempts) == (message_id, 0)
    with database.writing() as session:
        assert not outbox.redeliver(session, message_id)  # a relay has it in hand


def test_a_final_event_drops_a_processing_that_waits(database: Database) -> None:
    queue_notice(database, PROCESSING)
    final = queue_notice(database, "training.completed")
    (message,) = claim(database)
    assert (message.id, message.sequence) == (final, 2)
    with database.reading() as session:
        assert outbox.dead_letters(session) == []


def test_a_processing_on_its_way_is_not_overtaken(database: Database) -> None:
    queue_notice(database, PROCESSING)
    (processing,) = claim(database)
    final = queue_notice(database, "training.failed")
    assert claim(database) == []
    record(database, processing, again())  # it failed, and nobody needs it any more
    assert [message.id for message in claim(database, utcnow() + timedelta(seconds=6))] == [final]
    with database.reading() as session:
        assert outbox.dead_letters(session) == []


def test_a_processing_with_nothing_after_it_is_tried_again(database: Database) -> None:
    queue_notice(database, PROCESSING)
    (processing,) = claim(database)
    record(database, processing, again(seconds=0))
    assert due(database) == [processing.id]


def test_an_attempt_that_got_through_after_all_counts(database: Database) -> None:
    message_id = queue_notice(database, "training.completed")
    (message,) = claim(database)
    with database.writing() as session:
        outbox.mark_failed(session, message_id, "given up", None)
    record(database, message, Outcome(Verdict.SENT, status=204))
    with database.reading() as session:
        assert outbox.dead_letters(session) == []
    assert due(database, at=utcnow() + timedelta(days=9)) == []


def test_a_receiver_that_is_gone_gets_nothing_more(database: Database) -> None:
    queue_notice(database, "training.completed", "job1")
    (message,) = claim(database)
    queue_notice(database, "training.completed", "job2")
    bobs = queue_notice(database, "training.completed", "job3", owner_id="bob")
    elsewhere = queue_notice(database, "training.completed", "job4", url="https://other.example")
    record(database, message, Outcome(Verdict.DISABLED, "the receiver answered 410", status=410, alert=True))
    assert set(due(database)) == {bobs, elsewhere}
    with database.reading() as session:
        assert {letter.job_id for letter in outbox.dead_letters(session)} == {"job1", "job2"}


def test_drop_unsent_takes_the_kinds_it_is_told(database: Database) -> None:
    put(database, "launch"), put(database, "notice"), put(database, "launch", job_id="other")
    cleanup = put(database, "cleanup")
    with database.writing() as session:
        assert outbox.drop_unsent(session, "job", ("launch", "notice")) == 2
    assert cleanup in due(database)
    assert len(due(database)) == 2


RULES: dict[str, dict[str, Any]] = {
    "kind": {"kind": "rumour"},
    "attempts": {"attempts": -1},
    "sequence": {"sequence": 0},
    "order": {"sequence": 1, "id": "new"},
    "one_end": {"sent_at": "2026-01-01 00:00:00", "dead_at": "2026-01-01 00:00:00"},
}


@pytest.mark.parametrize("rule", RULES)
def test_the_database_refuses_what_is_none(database: Database, rule: str) -> None:
    put(database, "launch")
    row = {
        "id": "x", "kind": "launch", "topic": "", "job_id": "job", "sequence": 2, "payload": "{}",
        "created_at": "2026-01-01 00:00:00", "due_at": "2026-01-01 00:00:00", "attempts": 0,
    }  # fmt: skip
    insert(database, row | {"id": "good", "sequence": 3})
    with pytest.raises(IntegrityError) as refusal:
        insert(database, row | RULES[rule])
    assert f"outbox_message_{rule}" in str(refusal.value) or "UNIQUE" in str(refusal.value)


def insert(database: Database, row: dict[str, Any]) -> None:
    names, values = ", ".join(row), ", ".join(repr(value) for value in row.values())
    with database.writing() as session:
        session.connection().exec_driver_sql(f"INSERT INTO outbox_message ({names}) VALUES ({values})")  # noqa: S608
