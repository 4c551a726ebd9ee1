"""Celery tasks that wait for jobs, the tasks that jobs send at their end, and launches that ended in an error."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

_WAITING = sa.text("sent_at IS NULL AND dead_at IS NULL")
_KINDS = "kind IN ('launch', 'notice', 'cleanup', 'mail', 'alert', 'callback')"
_COLUMNS = (
    "id, kind, topic, job_id, owner_id, destination, sequence, payload, created_at, due_at, claimed_until, attempts,"
    " sent_at, dead_at, last_error"
)
_CALLS = """
CREATE TABLE task_call (
    task_id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    job_id TEXT NOT NULL,
    waits BOOLEAN NOT NULL,
    callbacks TEXT NOT NULL,
    errbacks TEXT NOT NULL,
    chain TEXT NOT NULL,
    chord TEXT,
    root_id TEXT,
    parent_id TEXT,
    group_id TEXT,
    group_index BIGINT,
    ignore_result BOOLEAN NOT NULL,
    created_at {time} NOT NULL
)
"""
# SQLite cannot change a constraint: the table is made anew.
_OUTBOX = f"""
CREATE TABLE outbox_message_new (
    id TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    topic TEXT NOT NULL,
    job_id TEXT,
    owner_id TEXT,
    destination TEXT,
    sequence BIGINT NOT NULL,
    payload TEXT NOT NULL,
    created_at DATETIME NOT NULL,
    due_at DATETIME NOT NULL,
    claimed_until DATETIME,
    attempts BIGINT NOT NULL,
    sent_at DATETIME,
    dead_at DATETIME,
    last_error TEXT,
    task_id TEXT,
    CONSTRAINT outbox_message_order UNIQUE (job_id, sequence),
    CONSTRAINT outbox_message_kind CHECK ({_KINDS}),
    CONSTRAINT outbox_message_attempts CHECK (attempts >= 0),
    CONSTRAINT outbox_message_sequence CHECK ((job_id IS NULL AND sequence = 0) OR sequence > 0),
    CONSTRAINT outbox_message_one_end CHECK (sent_at IS NULL OR dead_at IS NULL)
)
"""


def upgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    op.execute(_CALLS.format(time="DATETIME" if on_sqlite else "TIMESTAMPTZ"))
    op.create_index("ix_task_call_job_id", "task_call", ["job_id"])
    op.add_column("training_job", sa.Column("on_end", sa.String))
    op.add_column("training_job", sa.Column("failed_launches", sa.Integer, nullable=False, server_default="0"))
    if on_sqlite:
        _copy_outbox()
    else:
        op.add_column("outbox_message", sa.Column("task_id", sa.Text))
        op.drop_constraint("outbox_message_kind", "outbox_message")
        op.create_check_constraint("outbox_message_kind", "outbox_message", _KINDS)
    op.create_index("outbox_message_task", "outbox_message", ["task_id"])


def _copy_outbox() -> None:
    op.execute(_OUTBOX)
    op.execute(f"INSERT INTO outbox_message_new ({_COLUMNS}) SELECT {_COLUMNS} FROM outbox_message")  # noqa: S608 - ours
    op.execute("DROP TABLE outbox_message")
    op.execute("ALTER TABLE outbox_message_new RENAME TO outbox_message")
    op.create_index("outbox_message_due", "outbox_message", ["kind", "due_at"], sqlite_where=_WAITING)
    op.create_index("outbox_message_waiting", "outbox_message", ["job_id", "kind", "sequence"], sqlite_where=_WAITING)
