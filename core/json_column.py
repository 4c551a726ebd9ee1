"""A text column that holds JSON and is a Python value of one type everywhere else."""

import json
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python
from sqlalchemy.types import TypeDecorator


class JsonColumn(TypeDecorator[Any]):
    """JSON text in the database, and in Python a value of `kind`: a pydantic model, or a type such as `list[str]`.

    Text, not the databases' own JSON types: SQLite and PostgreSQL then hold the same, and so does a back-up. SQLAlchemy
    does not notice a change inside such a value: assign a new one.
    """

    impl = sa.String
    cache_ok = True

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind
        self._adapter: TypeAdapter[Any] = TypeAdapter(kind)

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:
        return None if value is None else json.dumps(value, default=to_jsonable_python)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Any:
        # Python's own parser: it also reads what pydantic's refuses, such as half of a surrogate pair.
        return None if value is None else self._adapter.validate_python(json.loads(value))


class JsonText(JsonColumn):
    """The same in a column of type TEXT."""

    impl = sa.Text
    cache_ok = True
