"""Columns of a type that the database does not have: times in UTC, and JSON with a Python type."""

from typing import Any

import sqlalchemy as sa

from core.clock import UtcDateTime
from core.json_column import JsonColumn


def time_column(nullable: bool = True) -> Any:
    return sa.Column(UtcDateTime(), nullable=nullable)


def json_column(kind: Any, nullable: bool = True) -> Any:
    return sa.Column(JsonColumn(kind), nullable=nullable)
