"""Changes of captions, and notes on the files of a subject's uploads and of a job's pictures."""

import sqlalchemy as sa
from alembic import op

from core.clock import UtcDateTime

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    op.create_table(
        "caption_change",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("owner_id", sa.String, nullable=False),
        sa.Column("subject_id", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("before", sa.String, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
    )
    op.create_index("ix_caption_change_subject", "caption_change", ["owner_id", "subject_id", "id"])
    op.add_column("subject", sa.Column("notes", sa.String))
