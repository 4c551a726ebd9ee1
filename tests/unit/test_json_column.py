"""JSON in a text column: values in Python, the same plain text in the database as ever."""

from enum import StrEnum
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import BaseModel, ValidationError

from core.json_column import JsonColumn, JsonText


class Shade(StrEnum):
    DARK = "dark"


class Spot(BaseModel):
    x: int
    shade: Shade = Shade.DARK


TABLE = sa.Table(
    "t",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("data", JsonColumn(dict[str, Any])),
    sa.Column("names", JsonText(list[str])),
    sa.Column("spot", JsonColumn(Spot)),
)


@pytest.fixture
def connection() -> Any:
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        TABLE.create(connection)
        yield connection


def test_values_come_back_and_the_text_is_json(connection: sa.Connection) -> None:
    values = {"data": {"step": 1, "loss": 1e-05, "none": None}, "names": ["é", "\0"], "spot": Spot(x=1)}
    connection.execute(TABLE.insert().values(id=1, **values))
    assert dict(connection.execute(sa.select(TABLE)).one()._mapping) == {"id": 1, **values}
    texts = connection.execute(sa.text("SELECT data, names, spot FROM t")).one()
    assert tuple(texts) == (
        '{"step": 1, "loss": 1e-05, "none": null}', '["\\u00e9", "\\u0000"]', '{"x": 1, "shade": "dark"}'
    )  # fmt: skip


def test_nothing_is_null(connection: sa.Connection) -> None:
    connection.execute(TABLE.insert().values(id=1))
    assert connection.execute(sa.text("SELECT data, names, spot FROM t")).one() == (None, None, None)
    assert connection.execute(sa.select(TABLE.c.data, TABLE.c.names, TABLE.c.spot)).one() == (None, None, None)


def test_text_of_older_versions_is_read(connection: sa.Connection) -> None:
    """Without spaces, with raw letters, with half of a surrogate pair, with NaN."""
    old = '{"a":"é","b":"\\ud800","c":NaN}', '["a","b"]', '{"x":2}'
    insert = sa.text("INSERT INTO t (id, data, names, spot) VALUES (1, :data, :names, :spot)")
    connection.execute(insert, dict(zip(("data", "names", "spot"), old, strict=True)))
    row = connection.execute(sa.select(TABLE)).one()
    assert (row.data["a"], row.data["b"], row.names, row.spot) == ("é", "\ud800", ["a", "b"], Spot(x=2))
    assert row.data["c"] != row.data["c"]


def test_text_of_another_kind_is_refused(connection: sa.Connection) -> None:
    connection.execute(sa.text("INSERT INTO t (id, names) VALUES (1, '{}')"))
    with pytest.raises(ValidationError):
        connection.execute(sa.select(TABLE.c.names)).one()
