"""Deletions, what is left of deleted trainings, drawings with their owners, and indexes to find the users of a file."""

import sqlalchemy as sa
from alembic import op

from core.clock import UtcDateTime

revision = "0019"
down_revision = "0018"

_INDEXES = (
    ("ix_picture_sha256", "picture", "sha256"),
    ("ix_picture_preview_key", "picture", "preview_key"),
    ("ix_job_picture_source", "job_picture", "source_sha256"),
    ("ix_job_picture_prepared", "job_picture", "prepared_sha256"),
    ("ix_prepared_picture_sha256", "prepared_picture", "sha256"),
    ("ix_training_job_dataset", "training_job", "dataset_sha256"),
)


def upgrade() -> None:
    op.create_table(
        "deletion",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("owner_id", sa.String, index=True),
        sa.Column("owner_sha256", sa.String, nullable=False),
        sa.Column("subject_id", sa.String),
        sa.Column("target_id", sa.String),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("note", sa.String),
        sa.Column("leased", sa.Boolean, nullable=False),
        sa.Column("due_at", UtcDateTime(), nullable=False),
        sa.Column("next_look_at", UtcDateTime(), nullable=False),
        sa.Column("quiet_at", UtcDateTime()),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("finished_at", UtcDateTime()),
    )
    op.create_index("ix_deletion_state", "deletion", ["state", "next_look_at"])
    op.create_table(
        "deleted_training",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("key_sha256", sa.String, index=True),
        sa.Column("deletion_id", sa.String, index=True),
        sa.Column("model_id", sa.String),
        sa.Column("deleted_at", UtcDateTime(), nullable=False),
    )
    op.create_table(
        "unused_object",
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("deleting_since", UtcDateTime()),
    )
    op.create_table(
        "drawing",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("owner_id", sa.String, nullable=False, index=True),
        sa.Column("subject_id", sa.String, nullable=False),
        sa.Column("job_id", sa.String, nullable=False, index=True),
        sa.Column("task_id", sa.String, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
    )
    op.add_column("training_job", sa.Column("thinned_at", UtcDateTime()))
    for name, table, column in _INDEXES:
        op.create_index(name, table, [column])
