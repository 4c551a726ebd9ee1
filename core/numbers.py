"""Numbers in requests: `true` is not the number 1."""

from typing import Any, get_args

from pydantic import BaseModel, ValidationInfo, field_validator


class NumbersAreNotBools(BaseModel):
    """A model whose numeric fields refuse `true` and `false`, which pydantic and Python take for 1 and 0."""

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_bool(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and _is_numeric(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError("Input should be a number, not true or false")
        return value


def _is_numeric(annotation: Any) -> bool:
    """Whether values of this type are numbers, or lists of them, but no bools."""
    kinds = set(_leaves(annotation))
    return bool(kinds & {int, float}) and bool not in kinds


def _leaves(annotation: Any) -> list[Any]:
    arguments = get_args(annotation)
    return [leaf for argument in arguments for leaf in _leaves(argument)] if arguments else [annotation]
