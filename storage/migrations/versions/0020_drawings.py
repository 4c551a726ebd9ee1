"""Drawings with the LoRA of a training, on the device of a worker."""

import sqlalchemy as sa
from alembic import op

from core.clock import UtcDateTime

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    op.create_table(
        "device_drawing",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("owner_id", sa.String, nullable=False),
        sa.Column("job_id", sa.String, nullable=False),
        sa.Column("idempotency_key", sa.String),
        sa.Column("request_sha256", sa.String, nullable=False),
        sa.Column("family", sa.String, nullable=False),
        sa.Column("base_model", sa.String, nullable=False),
        sa.Column("prompt", sa.String, nullable=False),
        sa.Column("strength", sa.Float, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("compare", sa.Boolean, nullable=False),
        sa.Column("steps", sa.Integer, nullable=False),
        sa.Column("guidance", sa.Float, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("total_steps", sa.Integer, nullable=False),
        sa.Column("pictures", sa.String, nullable=False),
        sa.Column("failure_code", sa.String),
        sa.Column("failure_message", sa.String),
        sa.Column("waiting_note", sa.String),
        sa.Column("hold_id", sa.String),
        sa.Column("charged", sa.BigInteger),
        sa.Column("lease_token", sa.Integer, nullable=False),
        sa.Column("lease_holder", sa.String),
        sa.Column("lease_until", UtcDateTime()),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("launches", sa.Integer, nullable=False),
        sa.Column("next_look_at", UtcDateTime(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime()),
        sa.Column("finished_at", UtcDateTime()),
        sa.UniqueConstraint("owner_id", "idempotency_key", name="uq_device_drawing_owner_key"),
    )
    op.create_index("ix_device_drawing_job", "device_drawing", ["job_id", "created_at"])
    op.create_index("ix_device_drawing_status", "device_drawing", ["status", "next_look_at"])
