"""Captions that a captioner writes, the stages for them, and jobs that wait for a review."""

import sqlalchemy as sa
from alembic import op

from core.clock import UtcDateTime

revision = "0025"
down_revision = "0024"

_BEFORE = "stage IN ('preprocess', 'dataset', 'train', 'upload', 'settle')"
_AFTER = "stage IN ('preprocess', 'caption', 'review', 'dataset', 'train', 'upload', 'settle')"


def upgrade() -> None:
    op.create_table(
        "generated_caption",
        sa.Column("owner_id", sa.String, primary_key=True),
        sa.Column("sha256", sa.String, primary_key=True),
        sa.Column("prompt_sha256", sa.String, primary_key=True),
        sa.Column("text", sa.String),
        sa.Column("asked_at", UtcDateTime()),
        sa.Column("created_at", UtcDateTime(), nullable=False),
    )
    op.create_index("ix_generated_caption_sha256", "generated_caption", ["sha256"])
    # With defaults, because workers of the version before insert rows without these columns during an update.
    for table, name in (
        ("training_job", "needs_captions"),
        ("training_job", "review"),
        ("training_worker", "captions"),
    ):
        op.add_column(table, sa.Column(name, sa.Boolean, nullable=False, server_default=sa.false()))
    if op.get_bind().dialect.name == "sqlite":
        _rewrite_check()
        return
    op.drop_constraint("ck_training_job_stage", "training_job")
    op.create_check_constraint("ck_training_job_stage", "training_job", _AFTER)


def _rewrite_check() -> None:
    """Change the constraint in SQLite's schema.

    SQLite cannot alter one, and the table cannot be made anew while others refer to it. A CHECK that only becomes wider
    may be rewritten: https://sqlite.org/lang_altertable.html#otheralter
    """
    connection = op.get_bind()
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema = ON")
    change = "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE type = 'table' AND name = 'training_job'"
    connection.exec_driver_sql(change, (_BEFORE, _AFTER))
    connection.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema = OFF")
