"""How far the ingress has read a RabbitMQ stream."""

from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.execute("CREATE TABLE stream_position (queue TEXT NOT NULL PRIMARY KEY, next_offset BIGINT NOT NULL)")
