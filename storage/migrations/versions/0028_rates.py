"""Indexes for the newest trainings of all owners, the newest of a kind, also on one device, and active jobs of versions
without admission.
"""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"

_KIND = ["status", "family", "backend", "resolution", "batch_size"]


def upgrade() -> None:
    op.drop_index("ix_training_job_kind", "training_job")
    rated = sa.text("seconds_per_step IS NOT NULL")
    for name, columns in (("rate", ["finished_at"]), ("rate_on", ["device", "finished_at"])):
        op.create_index(
            f"ix_training_job_{name}", "training_job", [*_KIND, *columns], sqlite_where=rated, postgresql_where=rated
        )
    op.create_index("ix_training_job_created", "training_job", ["created_at", "id"])
    without = sa.text("admitted_at IS NULL AND queue = '' AND status IN ('pending', 'training')")
    op.create_index(
        "ix_training_job_without_queue", "training_job", ["next_look_at"],
        sqlite_where=without, postgresql_where=without,
    )  # fmt: skip
