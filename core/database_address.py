"""Database addresses: SQLAlchemy's URL and what the driver gets beside it."""

from typing import Any

import sqlalchemy as sa

_THRESHOLD = "prepare_threshold"


def engine_arguments(address: str) -> tuple[str, dict[str, Any]]:
    """The address for `create_engine`, and its other arguments. Raises ValueError for a wrong `prepare_threshold`.

    psycopg prepares a statement on the server after five uses. Behind pgbouncer in transaction mode that fails, because
    each transaction may run on another connection to the server, where the name is unknown or taken. So nothing is
    prepared unless the address asks for it: `?prepare_threshold=5`.
    """
    url = sa.make_url(address)
    if url.drivername != "postgresql+psycopg":
        return address, {}
    given = str(url.query.get(_THRESHOLD, "none"))
    if given != "none" and not given.isdecimal():
        raise ValueError(f"{_THRESHOLD} in the database's address must be a whole number or none")
    plain = url.difference_update_query([_THRESHOLD]).render_as_string(hide_password=False)
    return plain, {"connect_args": {_THRESHOLD: None if given == "none" else int(given)}}
