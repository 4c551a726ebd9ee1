"""Pictures to fetch from addresses, and when periodic tasks last ran."""

import sqlalchemy as sa
from alembic import op

from core.clock import UtcDateTime

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.create_table(
        "image_fetch",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("owner_id", sa.String, nullable=False),
        sa.Column("subject_id", sa.String, nullable=False),
        sa.Column("is_mask", sa.Boolean, nullable=False),
        sa.Column("addresses", sa.String, nullable=False),
        sa.Column("results", sa.String, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("leased", sa.Boolean, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("next_look_at", UtcDateTime(), nullable=False),
        sa.Column("finished_at", UtcDateTime()),
    )
    op.create_index("ix_image_fetch_owner_id", "image_fetch", ["owner_id"])
    op.create_table(
        "periodic_run",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("finished_at", UtcDateTime(), nullable=False),
    )
