"""The outbox: messages that must reach someone, written in the same transaction as what they tell."""

from alembic import op

revision = "0002"
down_revision = "0001"

_TABLES = """
CREATE TABLE outbox_message (
    id TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    topic TEXT NOT NULL,
    job_id TEXT,
    owner_id TEXT,
    destination TEXT,
    sequence BIGINT NOT NULL,
    payload TEXT NOT NULL,
    created_at {time} NOT NULL,
    due_at {time} NOT NULL,
    claimed_until {time},
    attempts BIGINT NOT NULL,
    sent_at {time},
    dead_at {time},
    last_error TEXT,
    CONSTRAINT outbox_message_order UNIQUE (job_id, sequence),
    CONSTRAINT outbox_message_kind CHECK (kind IN ('launch', 'notice', 'cleanup', 'mail', 'alert')),
    CONSTRAINT outbox_message_attempts CHECK (attempts >= 0),
    CONSTRAINT outbox_message_sequence CHECK ((job_id IS NULL AND sequence = 0) OR sequence > 0),
    CONSTRAINT outbox_message_one_end CHECK (sent_at IS NULL OR dead_at IS NULL)
);
CREATE INDEX outbox_message_due ON outbox_message (kind, due_at) WHERE sent_at IS NULL AND dead_at IS NULL;
CREATE INDEX outbox_message_waiting ON outbox_message (job_id, kind, sequence)
    WHERE sent_at IS NULL AND dead_at IS NULL
"""


def upgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    for statement in _TABLES.format(time="DATETIME" if on_sqlite else "TIMESTAMPTZ").split(";"):
        op.execute(statement)
