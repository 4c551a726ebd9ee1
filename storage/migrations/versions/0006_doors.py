"""Subjects and their pictures, API tokens, and notification preferences."""

import sqlalchemy as sa
from alembic import op

from core.clock import UtcDateTime

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    for column in (
        sa.Column("caption", sa.String),
        sa.Column("report", sa.String),
        sa.Column("preview_key", sa.String),
        sa.Column("removed_at", UtcDateTime()),
    ):
        op.add_column("picture", column)
    op.create_table(
        "subject",
        sa.Column("owner_id", sa.String, primary_key=True),
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("trigger_word", sa.String),
        sa.Column("class_word", sa.String),
        sa.Column("base_model", sa.String),
        sa.Column("webhook_url", sa.String),
        sa.Column("train_automatically", sa.Boolean, nullable=False),
        sa.Column("profile_sets", sa.Integer, nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
    )
    op.create_table(
        "api_token",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("sha256", sa.String, nullable=False, unique=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("owner_id", sa.String, index=True),
        sa.Column("scopes", sa.String, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime()),
        sa.Column("revoked_at", UtcDateTime()),
    )
    op.create_table(
        "notice_preferences",
        sa.Column("owner_id", sa.Text, primary_key=True),
        sa.Column("email", sa.Text),
        sa.Column("events", sa.Text, nullable=False),
        sa.Column("low_credits", sa.BigInteger),
        sa.Column("low_told_at", UtcDateTime()),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
    )
