"""Columns for the queried fields of a spec, and for what an active job waits for."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_BATCH = 1000
_OF_OLD = {"family": "", "backend": "local", "resolution": 0, "batch_size": 0}  # where a spec does not name one


def upgrade() -> None:
    # With defaults, because workers of the version before insert jobs without these columns during an update.
    op.add_column("training_job", sa.Column("family", sa.String, nullable=False, server_default=sa.text("''")))
    op.add_column("training_job", sa.Column("backend", sa.String, nullable=False, server_default=sa.text("''")))
    op.add_column("training_job", sa.Column("resolution", sa.Integer, nullable=False, server_default="0"))
    op.add_column("training_job", sa.Column("batch_size", sa.Integer, nullable=False, server_default="0"))
    op.add_column("training_job", sa.Column("waiting_note", sa.String))
    _fill(op.get_bind())
    op.create_index(
        "ix_training_job_kind", "training_job", ["family", "backend", "resolution", "batch_size", "finished_at"]
    )


def _fill(connection: sa.Connection) -> None:
    job = sa.table(
        "training_job",
        *(sa.column(name) for name in ("id", "spec", "status", "family", "backend", "waiting_note", "failure_message")),
        sa.column("resolution", sa.Integer),
        sa.column("batch_size", sa.Integer),
    )
    update = sa.update(job).where(job.c.id == sa.bindparam("job"))
    update = update.values({name: sa.bindparam(f"new_{name}") for name in _OF_OLD})
    last = ""
    while rows := connection.execute(
        sa.select(job.c.id, job.c.spec).where(job.c.id > last).order_by(job.c.id).limit(_BATCH)
    ).all():
        values = []
        for row in rows:
            spec = _OF_OLD | json.loads(row.spec)
            values.append({"job": row.id} | {f"new_{name}": spec[name] for name in _OF_OLD})
        connection.execute(update, values)
        last = rows[-1].id
    active = sa.update(job).where(job.c.status.in_(("pending", "training")), job.c.failure_message.is_not(None))
    connection.execute(active.values(waiting_note=job.c.failure_message, failure_message=None))
