"""What producers give to a job and get back in its notices; names of pictures, and since when one is unreachable."""

import sqlalchemy as sa
from alembic import op

from core.clock import UtcDateTime

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    for name in ("model_id", "reference", "message_id", "style_id"):
        op.add_column("training_job", sa.Column(name, sa.String))
    # With defaults, because workers of the version before insert jobs without these columns during an update.
    for name in ("allow_missing", "model_link"):
        op.add_column("training_job", sa.Column(name, sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_index("uq_training_job_model", "training_job", ["model_id"], unique=True)
    op.add_column("job_picture", sa.Column("name", sa.String))
    op.add_column("job_picture", sa.Column("unreachable_since", UtcDateTime()))
    op.add_column("picture", sa.Column("name", sa.String))
