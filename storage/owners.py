"""The columns that name an owner, in all tables."""

import sqlalchemy as sa

# Every table with the column `owner_id`.
OWNED = (
    "api_token",
    "audit_entry",
    "caption_change",
    "credit_account",
    "deletion",
    "device_drawing",
    "disabled_receiver",
    "drawing",
    "generated_caption",
    "image_fetch",
    "notice_preferences",
    "outbox_message",
    "owner_share",
    "page_session",
    "picture",
    "subject",
    "training_job",
    "usage_limit",
)


def names_in_use(connection: sa.Connection, tables: tuple[str, ...] = OWNED) -> set[str]:
    """The names of all owners of whom there is a row."""
    names: set[str] = set()
    for table in tables:
        column = sa.column("owner_id", sa.String)
        names |= set(connection.execute(sa.select(column).select_from(sa.table(table)).distinct()).scalars())
    return {name for name in names if name is not None}


def rename_rows(connection: sa.Connection, old: str, new: str, tables: tuple[str, ...] = OWNED) -> None:
    """Write `new` in place of `old` in every table."""
    for table in tables:
        owned = sa.table(table, sa.column("owner_id", sa.String))
        connection.execute(sa.update(owned).where(owned.c.owner_id == old).values(owner_id=new))
