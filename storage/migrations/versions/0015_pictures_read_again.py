"""Picture files that could not be decoded are tried again: this version reads more formats.

The verdict was kept for all later trainings on the same file. A decoded picture keeps its row.
"""

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.execute("DELETE FROM prepared_picture WHERE key IS NULL")
    op.execute("UPDATE picture SET report = NULL WHERE preview_key IS NULL")
