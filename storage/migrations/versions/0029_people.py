"""People who sign in by OpenID Connect."""

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0028"


def upgrade() -> None:
    op.add_column("api_token", sa.Column("person", sa.String))
    op.create_index("ix_api_token_person", "api_token", ["person"])
