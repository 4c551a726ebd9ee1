"""The loss on held-out pictures, beside that of the training."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("training_job", sa.Column("validation_loss", sa.Float))
