"""Trainings on remote servers, and the machines rented for them."""

import sqlalchemy as sa
from alembic import op

from core.clock import UtcDateTime

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "rented_pod",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("name", sa.String, nullable=False, unique=True),
        sa.Column("provider_id", sa.String),
        sa.Column("gpu", sa.String, nullable=False),
        sa.Column("family", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("url", sa.String),
        sa.Column("cost_microdollars_per_h", sa.BigInteger, nullable=False),
        sa.Column("idle_microdollars", sa.BigInteger, nullable=False),
        sa.Column("missed", sa.Integer, nullable=False),
        sa.Column("reason", sa.String),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("asked_at", UtcDateTime(), nullable=False),
        sa.Column("accounted_at", UtcDateTime(), nullable=False),
        sa.Column("ready_at", UtcDateTime()),
        sa.Column("idle_since", UtcDateTime()),
        sa.Column("gone_at", UtcDateTime()),
        sa.CheckConstraint("state IN ('renting', 'starting', 'ready', 'closing', 'gone')", name="ck_rented_pod_state"),
    )
    op.create_index("ix_rented_pod_state", "rented_pod", ["state"])
    op.create_table(
        "remote_run",
        sa.Column("job_id", sa.String, sa.ForeignKey("training_job.id"), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False, unique=True),
        sa.Column("pod_id", sa.String, sa.ForeignKey("rented_pod.id"), index=True),
        sa.Column("remote_id", sa.String),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("info", sa.String, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("log_offset", sa.Integer, nullable=False),
        sa.Column("previews", sa.Integer, nullable=False),
        sa.Column("moved_at", UtcDateTime(), nullable=False),
        sa.Column("missed", sa.Integer, nullable=False),
        sa.Column("reason", sa.String),
        sa.Column("cost_microdollars", sa.BigInteger, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("submitted_at", UtcDateTime()),
        sa.Column("started_at", UtcDateTime()),
        sa.Column("looked_at", UtcDateTime()),
        sa.Column("ended_at", UtcDateTime()),
        sa.Column("cleared_at", UtcDateTime()),
        sa.CheckConstraint("state IN ('submitting', 'submitted', 'completed', 'ended')", name="ck_remote_run_state"),
    )
    op.create_index("ix_remote_run_state", "remote_run", ["state", "cleared_at"])
