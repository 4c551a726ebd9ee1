"""When retention deleted the history of a job; and indexes with which it finds the next jobs without reading all."""

import sqlalchemy as sa
from alembic import op

from core.clock import UtcDateTime

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    op.add_column("training_job", sa.Column("trimmed_at", UtcDateTime()))
    for name in ("thinned", "trimmed"):
        waits = sa.text(f"{name}_at IS NULL")
        op.create_index(
            f"ix_training_job_not_{name}", "training_job", ["finished_at"], sqlite_where=waits, postgresql_where=waits
        )
