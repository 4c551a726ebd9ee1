"""Each rule of the tables of jobs and messages refuses, by itself, a write that goes past our code."""

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from storage.database import Database
from tests.contract.rules import Rule, connected, each_refuses_by_itself, every_rule_is_tried

TABLES = ("training_job", "job_picture", "job_event", "outbox_message", "disabled_receiver")
AT = "2026-01-01 00:00:00"

JOB: dict[str, Any] = {
    "id": "new", "owner_id": "ada", "subject_id": "dog", "idempotency_key": "new", "request_sha256": "", "spec": "{}",
    "status": "pending", "stage": "preprocess", "attempt": 0, "step": 0, "total_steps": 1, "lease_token": 0,
    "launches": 0, "next_look_at": AT, "train_seconds": 0, "checkpoint_step": 0, "created_at": AT,
}  # fmt: skip
PICTURE: dict[str, Any] = {
    "job_id": "job", "position": 1, "reference": "pic", "state": "waiting", "source_bytes": 0, "width": 0, "height": 0,
    "faults": "[]", "lease_token": 0, "attempt": 0,
}  # fmt: skip
EVENT: dict[str, Any] = {"id": 2, "job_id": "job", "at": AT, "kind": "status", "data": "{}"}
MESSAGE: dict[str, Any] = {
    "id": "new", "kind": "launch", "topic": "", "job_id": "job", "sequence": 2, "payload": "{}", "created_at": AT,
    "due_at": AT, "attempts": 0,
}  # fmt: skip
RECEIVER: dict[str, Any] = {"owner_id": "bob", "destination": "d", "reason": "410", "disabled_at": AT}


def insert(table: str, row: dict[str, Any], **changed: Any) -> str:
    row = row | changed
    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(map(repr, row.values()))})"  # noqa: S608


RULES = [
    Rule("training_job_pkey", insert("training_job", JOB, id="job")),
    Rule("uq_training_job_owner_key", insert("training_job", JOB, idempotency_key="k")),
    Rule("uq_training_job_model", insert("training_job", JOB, model_id="m")),
    Rule("uq_training_job_report_key", insert("training_job", JOB, report_key="r")),
    Rule("ck_training_job_status", insert("training_job", JOB, status="lost")),
    Rule("ck_training_job_stage", insert("training_job", JOB, stage="lunch")),
    Rule("job_picture_pkey", insert("job_picture", PICTURE, position=0)),
    Rule("job_picture_job_id_fkey", insert("job_picture", PICTURE, job_id="none")),
    Rule("ck_job_picture_state", insert("job_picture", PICTURE, state="")),
    Rule("job_event_pkey", insert("job_event", EVENT, id=1)),
    Rule("job_event_job_id_fkey", insert("job_event", EVENT, job_id="none")),
    Rule("outbox_message_pkey", insert("outbox_message", MESSAGE, id="message")),
    Rule("outbox_message_order", insert("outbox_message", MESSAGE, sequence=1)),
    Rule("outbox_message_kind", insert("outbox_message", MESSAGE, kind="rumour")),
    Rule("outbox_message_attempts", insert("outbox_message", MESSAGE, attempts=-1)),
    Rule("outbox_message_sequence", insert("outbox_message", MESSAGE, sequence=0)),
    Rule("outbox_message_one_end", insert("outbox_message", MESSAGE, sent_at=AT, dead_at=AT)),
    Rule("disabled_receiver_pkey", insert("disabled_receiver", RECEIVER, owner_id="ada")),
]
BOOKS = [
    insert("training_job", JOB, id="job", idempotency_key="k", model_id="m", report_key="r"),
    insert("job_picture", PICTURE, position=0),
    insert("job_event", EVENT, id=1),
    insert("outbox_message", MESSAGE, id="message", sequence=1),
    insert("disabled_receiver", RECEIVER, owner_id="ada"),
]


@pytest.fixture
def connection(database: Database) -> Iterator[sa.Connection]:
    yield from connected(database, BOOKS)


def test_each_rule_refuses_by_itself(connection: sa.Connection) -> None:
    each_refuses_by_itself(connection, RULES)


def test_every_rule_is_tried(connection: sa.Connection) -> None:
    every_rule_is_tried(connection, RULES, TABLES)
