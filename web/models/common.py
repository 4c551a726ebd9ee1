"""What all models of the API share: names outside, and fields that the recipe checks."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from jobs.requests.training_request import Envelope
from training.spec import TrainSpec


def _said_outside(told: Any, shared: Mapping[str, Any]) -> Any:
    """A schema with what it refers to put in place, and fields of groups by their names outside."""
    if isinstance(told, list):
        return [_said_outside(part, shared) for part in told]
    if not isinstance(told, dict):
        return told
    if "$ref" in told:
        told = shared[told["$ref"].rsplit("/", 1)[1]] | {key: part for key, part in told.items() if key != "$ref"}
    said = {
        key: _said_outside(part, shared) for key, part in told.items() if key != "title" or not isinstance(part, str)
    }
    if "properties" in said:
        said["properties"] = {to_camel(name): part for name, part in said["properties"].items()}
    return said


_SPEC = TrainSpec.model_json_schema()
_KNOWN = {
    **{name: _said_outside(told, _SPEC.get("$defs", {})) for name, told in _SPEC["properties"].items()},
    **Envelope.model_json_schema()["properties"],
}
JOB, PICTURE = "job_01m804w5gaakt0m1296p7r7xd8", "pic_01m804v1z0c4x9m3w7b2n5k8q6"


class ResponseModel(BaseModel):
    """An answer."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


def camel_keys(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` with keys as they are outside."""
    return {to_camel(key): told for key, told in value.items()}


# A group of the recipe's options, all of them; the request's schema says which there are.
Options = Annotated[dict[str, Any], AfterValidator(camel_keys)]


class RequestModel(BaseModel):
    """A request: a field that we do not know is a fault."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")


def as_in_spec(name: str, description: str) -> Any:
    """A field that the recipe checks, not this model: so that all faults of a request are named at once."""
    schema = {key: told for key, told in _KNOWN[name].items() if key not in ("title", "default")}
    return Field(None, description=description, json_schema_extra=schema)


def inner_keys(group: str, given: Any) -> Any:
    """The options of a group of the recipe, as they came, by their names inside."""
    names = {to_camel(name): name for name in TrainSpec.model_fields[group].annotation.model_fields}  # type: ignore[union-attr]
    return {names.get(name, name): value for name, value in given.items()} if isinstance(given, dict) else given
