"""What the application's screener says of pictures."""

import sqlalchemy as sa
from alembic import op

from core.clock import UtcDateTime

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    op.create_table(
        "screening",
        sa.Column("sha256", sa.String, primary_key=True),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("reason", sa.String),
        sa.Column("asked_at", UtcDateTime()),
        sa.Column("changed_at", UtcDateTime(), nullable=False),
    )
    op.create_index("ix_screening_state", "screening", ["state"])
