"""Masks: of each picture of a job, and which stored pictures are one."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("job_picture", sa.Column("mask", sa.String))
    op.add_column("picture", sa.Column("is_mask", sa.Boolean, nullable=False, server_default=sa.false()))
