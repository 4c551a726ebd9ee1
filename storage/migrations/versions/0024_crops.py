"""The part of a picture that is trained, and what was noted about a job's pictures."""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"


def upgrade() -> None:
    op.add_column("picture", sa.Column("crop", sa.String))
    op.add_column("job_picture", sa.Column("crop", sa.String))
    op.add_column("training_job", sa.Column("notes", sa.String))
