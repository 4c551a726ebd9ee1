"""Pictures, jobs and what happened to them."""

import sqlalchemy as sa
from alembic import op

from core.clock import UtcDateTime

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "picture",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("owner_id", sa.String, nullable=False, index=True),
        sa.Column("subject_id", sa.String, nullable=False),
        sa.Column("sha256", sa.String, nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
    )
    op.create_table(
        "prepared_picture",
        sa.Column("source_sha256", sa.String, primary_key=True),
        sa.Column("recipe", sa.String, primary_key=True),
        sa.Column("key", sa.String),
        sa.Column("sha256", sa.String),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("report", sa.String, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
    )
    _jobs()
    op.create_table(
        "job_picture",
        sa.Column("job_id", sa.String, sa.ForeignKey("training_job.id"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("reference", sa.String, nullable=False),
        sa.Column("caption", sa.String),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("source_sha256", sa.String),
        sa.Column("source_bytes", sa.BigInteger, nullable=False),
        sa.Column("prepared_sha256", sa.String),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("faults", sa.String, nullable=False),
        sa.Column("report", sa.String),
        *_lease(),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.CheckConstraint("state IN ('waiting', 'good', 'bad')", name="ck_job_picture_state"),
    )
    op.create_table(
        "job_event",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("job_id", sa.String, sa.ForeignKey("training_job.id"), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("data", sa.String, nullable=False),
    )
    op.create_index("ix_job_event_job", "job_event", ["job_id", "id"])


def _jobs() -> None:
    op.create_table(
        "training_job",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("owner_id", sa.String, nullable=False),
        sa.Column("subject_id", sa.String, nullable=False),
        sa.Column("idempotency_key", sa.String),
        sa.Column("request_sha256", sa.String, nullable=False),
        sa.Column("spec", sa.String, nullable=False),
        sa.Column("webhook_url", sa.String),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("stage", sa.String, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("total_steps", sa.Integer, nullable=False),
        sa.Column("loss", sa.Float),
        sa.Column("seconds_left", sa.Float),
        sa.Column("seconds_per_step", sa.Float),
        sa.Column("failure_code", sa.String),
        sa.Column("failure_message", sa.String),
        sa.Column("details", sa.String),
        sa.Column("hold_id", sa.String),
        sa.Column("charged", sa.BigInteger),
        *_lease(),
        sa.Column("launches", sa.Integer, nullable=False),
        sa.Column("next_look_at", UtcDateTime(), nullable=False),
        sa.Column("dataset_sha256", sa.String),
        sa.Column("lora_sha256", sa.String),
        sa.Column("lora_bytes", sa.BigInteger),
        sa.Column("lora_key", sa.String),
        sa.Column("train_seconds", sa.Float, nullable=False),
        sa.Column("checkpoint_step", sa.Integer, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime()),
        sa.Column("finished_at", UtcDateTime()),
        sa.UniqueConstraint("owner_id", "idempotency_key", name="uq_training_job_owner_key"),
        sa.CheckConstraint(
            "status IN ('pending', 'training', 'ready', 'failed', 'cancelled')", name="ck_training_job_status"
        ),
        sa.CheckConstraint(
            "stage IN ('preprocess', 'dataset', 'train', 'upload', 'settle')", name="ck_training_job_stage"
        ),
    )
    op.create_index("ix_training_job_owner", "training_job", ["owner_id", "created_at"])
    op.create_index("ix_training_job_status", "training_job", ["status", "next_look_at"])


def _lease() -> list[sa.Column[object]]:
    return [
        sa.Column("lease_token", sa.Integer, nullable=False),
        sa.Column("lease_holder", sa.String),
        sa.Column("lease_until", UtcDateTime()),
    ]
