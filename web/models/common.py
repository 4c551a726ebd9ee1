"""What all models of the API share: camelCase names, and the fields of a training's recipe."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from core.numbers import NumbersAreNotBools
from jobs.requests.envelope import Envelope
from training.spec import GROUPS, TrainSpec


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """A JSON schema without references and titles, and with the API's names for the fields of groups."""
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        referred = definitions[schema["$ref"].rsplit("/", 1)[1]]
        schema = referred | {key: part for key, part in schema.items() if key != "$ref"}
    inlined = {
        key: _inlined(part, definitions) for key, part in schema.items() if key != "title" or not isinstance(part, str)
    }
    if "properties" in inlined:
        inlined["properties"] = {to_camel(name): part for name, part in inlined["properties"].items()}
    return inlined


_FIELDS = {
    name: _inlined(schema, model.get("$defs", {}))
    for model in (TrainSpec.model_json_schema(), Envelope.model_json_schema())
    for name, schema in model["properties"].items()
}
JOB, PICTURE = "job_01m804w5gaakt0m1296p7r7xd8", "pic_01m804v1z0c4x9m3w7b2n5k8q6"
FETCH = "fetch_01m804v0b1x5d0n4w8c3p6l9r7"


class ResponseModel(BaseModel):
    """A response, made from what a service returns: `Model.model_validate(view)` reads its fields by name."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, from_attributes=True)


def camel_keys(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` with its keys in camelCase."""
    return {to_camel(key): item for key, item in value.items()}


def _options(group: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    return camel_keys(group.model_dump(mode="json") if isinstance(group, BaseModel) else group)


def _recipe(recipe: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if recipe is None:
        return None
    return {to_camel(name): camel_keys(value) if name in GROUPS else value for name, value in recipe.items()}


# A recipe of which only the given fields are stored.
RecipeFields = Annotated[dict[str, Any] | None, BeforeValidator(_recipe)]
# All options of one group of the recipe; the schema of the request lists them.
Options = Annotated[dict[str, Any], BeforeValidator(_options)]


class RequestModel(NumbersAreNotBools):
    """A request body; unknown fields are refused."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")


def as_in_spec(name: str, description: str) -> Any:
    """A field that is validated with the recipe and not here, so that one answer names all faults of a request."""
    schema = {key: part for key, part in _FIELDS[name].items() if key not in ("title", "default")}
    return Field(None, description=description, json_schema_extra=schema)


def snake_keys(group: str, given: Any) -> Any:
    """The options of a group of the recipe with their names in the code; everything else stays as it is."""
    if group not in GROUPS:
        return given
    names = {to_camel(name): name for name in TrainSpec.model_fields[group].annotation.model_fields}  # type: ignore[union-attr]
    return {names.get(name, name): value for name, value in given.items()} if isinstance(given, dict) else given
