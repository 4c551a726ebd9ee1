"""Limits of owners and tokens, and the audit log, which nothing changes."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"

_TABLES = """
CREATE TABLE usage_limit (
    id VARCHAR NOT NULL PRIMARY KEY,
    owner_id VARCHAR,
    token_id VARCHAR,
    name VARCHAR NOT NULL,
    value BIGINT NOT NULL CHECK (value >= 0)
);
CREATE TABLE audit_entry (
    id VARCHAR NOT NULL PRIMARY KEY,
    at {time} NOT NULL,
    actor VARCHAR NOT NULL,
    actor_id VARCHAR NOT NULL,
    action VARCHAR NOT NULL,
    job_id VARCHAR,
    owner_id VARCHAR,
    data VARCHAR NOT NULL
)
"""
_COLUMNS = "id, at, actor, actor_id, action, job_id, data"
_ON_SQLITE = (
    f"""CREATE TRIGGER audit_entry_no_update BEFORE UPDATE OF {_COLUMNS} ON audit_entry
    BEGIN SELECT RAISE(ABORT, 'audit_entry is append-only'); END""",
    """CREATE TRIGGER audit_entry_no_delete BEFORE DELETE ON audit_entry
    BEGIN SELECT RAISE(ABORT, 'audit_entry is append-only'); END""",
)
_ON_POSTGRESQL = (
    f"""CREATE TRIGGER audit_entry_no_update BEFORE UPDATE OF {_COLUMNS} ON audit_entry
    FOR EACH ROW EXECUTE FUNCTION credit_refuse('audit_entry is append-only')""",
    """CREATE TRIGGER audit_entry_no_delete BEFORE DELETE ON audit_entry
    FOR EACH ROW EXECUTE FUNCTION credit_refuse('audit_entry is append-only')""",
    """CREATE TRIGGER audit_entry_no_truncate BEFORE TRUNCATE ON audit_entry
    EXECUTE FUNCTION credit_refuse('audit_entry is append-only')""",
)


def upgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    tables = _TABLES.format(time="DATETIME" if on_sqlite else "TIMESTAMPTZ").split(";")
    for statement in (*tables, *(_ON_SQLITE if on_sqlite else _ON_POSTGRESQL)):
        op.execute(statement)
    for column in ("owner_id", "token_id"):
        op.create_index(f"uq_usage_limit_{column[:5]}", "usage_limit", [column, "name"], unique=True)
    op.create_index("ix_audit_entry_at", "audit_entry", ["at"])
    op.create_index("ix_audit_entry_job", "audit_entry", ["job_id"])
    op.create_index("ix_audit_entry_owner", "audit_entry", ["owner_id", "at"])
    op.add_column("training_job", sa.Column("token_id", sa.String))
    op.create_index("ix_training_job_token", "training_job", ["token_id", "created_at"])
