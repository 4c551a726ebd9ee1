"""A kind of message that sends a callback again until the application's worker has ended it."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"

_WAITING = sa.text("sent_at IS NULL AND dead_at IS NULL")
_KINDS = "kind IN ('launch', 'notice', 'cleanup', 'mail', 'alert', 'callback', 'confirmation')"
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
    if op.get_bind().dialect.name != "sqlite":
        op.drop_constraint("outbox_message_kind", "outbox_message")
        op.create_check_constraint("outbox_message_kind", "outbox_message", _KINDS)
        return
    op.execute(_OUTBOX)
    op.execute("INSERT INTO outbox_message_new SELECT * FROM outbox_message")
    op.execute("DROP TABLE outbox_message")
    op.execute("ALTER TABLE outbox_message_new RENAME TO outbox_message")
    op.create_index("outbox_message_due", "outbox_message", ["kind", "due_at"], sqlite_where=_WAITING)
    op.create_index("outbox_message_waiting", "outbox_message", ["job_id", "kind", "sequence"], sqlite_where=_WAITING)
    op.create_index("outbox_message_task", "outbox_message", ["task_id"])
