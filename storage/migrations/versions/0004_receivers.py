"""Receivers that want no more notices."""

import sqlalchemy as sa
from alembic import op

from core.clock import UtcDateTime

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "disabled_receiver",
        sa.Column("owner_id", sa.Text, primary_key=True),
        sa.Column("destination", sa.Text, primary_key=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("disabled_at", UtcDateTime(), nullable=False),
    )
