"""Sessions of the page, the caller's key of a profile set, and owners' names in the one spelling that is looked up."""

import logging
from collections import defaultdict

import sqlalchemy as sa
from alembic import op

from core.clock import UtcDateTime
from core.names import intended_name
from storage.owners import names_in_use, rename_rows

revision = "0012"
down_revision = "0011"

log = logging.getLogger("storage.migrations")

_OWNED = (
    "api_token", "credit_account", "disabled_receiver", "notice_preferences", "outbox_message", "picture", "subject",
    "training_job",
)  # fmt: skip


def upgrade() -> None:
    op.create_table(
        "page_session",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("token_id", sa.String, sa.ForeignKey("api_token.id"), nullable=False, index=True),
        sa.Column("owner_id", sa.String, index=True),
        sa.Column("browser", sa.String, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("ended_at", UtcDateTime()),
    )
    op.add_column("training_job", sa.Column("report_key", sa.String))
    op.create_index("uq_training_job_report_key", "training_job", ["owner_id", "report_key"], unique=True)
    _rename_owners(op.get_bind())


def _rename_owners(connection: sa.Connection) -> None:
    """Rename owners who are alone with their name. Where two names are one, say so and change neither: that would
    merge two accounts.
    """
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names_in_use(connection, _OWNED)):
        try:
            spellings[intended_name(name)].append(name)
        except ValueError as fault:
            log.warning("no request can use the owner's name %s: %s (see: imprint owners)", ascii(name), fault)
    for name, found in spellings.items():
        if len(found) > 1:
            names = ", ".join(ascii(one) for one in found)
            log.warning("the owners %s are spellings of one name; none is renamed (see: imprint owners)", names)
        elif found != [name]:
            rename_rows(connection, found[0], name, _OWNED)
            log.warning("the owner %s is now called %s", ascii(found[0]), ascii(name))
