"""Admission: jobs wait in their rows for their turn."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"

_TABLES = """
CREATE TABLE training_worker (
    worker VARCHAR NOT NULL,
    queue VARCHAR NOT NULL,
    slots INTEGER NOT NULL,
    draining BOOLEAN NOT NULL DEFAULT {false},
    seen_at {time} NOT NULL,
    PRIMARY KEY (worker, queue)
);
CREATE TABLE owner_share (
    owner_id VARCHAR NOT NULL PRIMARY KEY,
    weight {float} NOT NULL DEFAULT 1,
    used_s {float} NOT NULL DEFAULT 0,
    used_at {float} NOT NULL DEFAULT 0,
    low_at {float} NOT NULL DEFAULT 0,
    normal_at {float} NOT NULL DEFAULT 0,
    high_at {float} NOT NULL DEFAULT 0
);
CREATE TABLE admission_pause (
    scope VARCHAR NOT NULL PRIMARY KEY,
    reason VARCHAR NOT NULL,
    paused_at {time} NOT NULL
)
"""
_WAITING = sa.text("admitted_at IS NULL AND queue <> '' AND status IN ('pending', 'training')")
_IN_FLIGHT = sa.text("admitted_at IS NOT NULL AND status IN ('pending', 'training')")


def upgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    time = sa.DateTime() if on_sqlite else sa.DateTime(timezone=True)
    types = (
        {"time": "DATETIME", "float": "FLOAT", "false": "0"}
        if on_sqlite
        else {"time": "TIMESTAMPTZ", "float": "DOUBLE PRECISION", "false": "FALSE"}
    )
    for statement in _TABLES.format(**types).split(";"):
        op.execute(statement)
    # With defaults, because workers of the version before insert jobs without these columns during an update. Such a
    # job has no queue: it was sent by the transaction that accepted it.
    op.add_column("training_job", sa.Column("queue", sa.String, nullable=False, server_default=sa.text("''")))
    op.add_column("training_job", sa.Column("priority", sa.SmallInteger, nullable=False, server_default="1"))
    op.add_column("training_job", sa.Column("shape", sa.String, nullable=False, server_default=sa.text("''")))
    op.add_column("training_job", sa.Column("expected_s", sa.Float, nullable=False, server_default="0"))
    op.add_column("training_job", sa.Column("admitted_at", time))
    op.create_index(
        "ix_training_job_waiting", "training_job", ["queue", "priority", "owner_id", "created_at", "id"],
        sqlite_where=_WAITING, postgresql_where=_WAITING,
    )  # fmt: skip
    op.create_index(
        "ix_training_job_in_flight", "training_job", ["queue", "owner_id"],
        sqlite_where=_IN_FLIGHT, postgresql_where=_IN_FLIGHT,
    )  # fmt: skip
    # Jobs of before were sent when they were accepted; from now on they take places like all others.
    op.execute(
        "UPDATE training_job SET admitted_at = created_at, queue = CASE backend WHEN 'ai-toolkit' THEN 'remote'"
        " ELSE 'train.' || family END WHERE status IN ('pending', 'training')"
    )
