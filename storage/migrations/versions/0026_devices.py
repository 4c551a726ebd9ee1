"""Devices of trainings and workers, how programs read a LoRA file, base models of workers, and sign-in links."""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"


def upgrade() -> None:
    op.add_column("training_job", sa.Column("device", sa.String, nullable=False, server_default=""))
    op.add_column("training_job", sa.Column("readers", sa.String))
    op.add_column("training_worker", sa.Column("device", sa.String, nullable=False, server_default=""))
    op.add_column("training_worker", sa.Column("bases", sa.String))
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    op.add_column("api_token", sa.Column("link_sha256", sa.String))
    op.execute(f"ALTER TABLE api_token ADD COLUMN link_expires_at {'DATETIME' if on_sqlite else 'TIMESTAMPTZ'}")
    op.create_index("uq_api_token_link", "api_token", ["link_sha256"], unique=True)
