"""What a subject's settings give to each of its trainings: the recipe, and a trigger word where none was set."""

import base64
import hashlib
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from sqlmodel import Session, col, select

from core.errors import SpecInvalid
from jobs.requests import envelope, recipe_options
from storage.tables.pictures import Subject
from training.spec import GROUPS, TrainSpec

# A subject has settings of its own for these, and its base model has a short name, which has a family.
_NOT_IN_RECIPE = {"base_model", "family", "trigger_word", "class_word"}
RECIPE = tuple(name for name in TrainSpec.model_fields if name not in _NOT_IN_RECIPE)
_SETTINGS = ("base_model", "trigger_word", "class_word", "webhook_url")
_STEM_CHARACTERS, _DIGEST_CHARACTERS = 12, 5


def parse(recipe: Mapping[str, Any], base_model: str | None) -> dict[str, Any]:
    """The values of a recipe as they are stored: only those that were given. Raises SpecInvalid with every fault."""
    faults = {f"recipe.{name}": "unknown option" for name in envelope.unknown_names(recipe, RECIPE)}
    given = {name: value for name, value in recipe.items() if name in RECIPE and value is not None}
    try:
        spec = TrainSpec.model_validate({"base_model": base_model or "sd15", "trigger_word": "x", "seed": 0, **given})
    except ValidationError as error:
        faults |= {f"recipe.{name}": fault for name, fault in envelope.faults_of(error).items()}
    if faults:
        raise SpecInvalid.of(faults)
    full = spec.model_dump(mode="json")
    return {
        name: {option: full[name][option] for option in value} if name in GROUPS else full[name]
        for name, value in given.items()
    }


def arguments(subject: Subject, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a training of `subject`: what is given, and the subject's settings for the rest."""
    recipe = dict(subject.recipe or {})
    if "epochs" in given:
        recipe.pop("max_steps", None)  # it would replace the epochs that were asked for
    settings = {name: value for name in _SETTINGS if (value := getattr(subject, name)) is not None}
    return {**settings, **recipe, **given}


def of_spec(spec: TrainSpec) -> dict[str, Any]:
    """The recipe of a training as a subject stores it: what differs from the defaults of its base model.

    The seed is not part of it: the next training draws its own.
    """
    usual = recipe_options.defaults(spec.base_model, spec.family)
    full = spec.model_dump(mode="json")
    plain = {
        name: full[name] for name in RECIPE if name not in (*GROUPS, "seed") and full[name] != getattr(usual, name)
    }
    if spec.max_steps is not None:
        plain.pop("epochs", None)  # they do not count beside a number of steps
    groups: dict[str, dict[str, Any]] = {name: getattr(spec, name).to_dict() for name in GROUPS}
    return plain | {name: group for name, group in groups.items() if group}


def derive_trigger_word(session: Session, owner_id: str, subject_id: str) -> str:
    """A trigger word for a subject without one: its id in plain letters, and some that make it unlike other words.

    The same subject always gets the same word. No other subject of the owner has it.
    """
    plain = unicodedata.normalize("NFKD", subject_id).encode("ascii", "ignore").decode().lower()
    stem = re.sub(r"[^a-z0-9]", "", plain)[:_STEM_CHARACTERS]
    digest = base64.b32encode(hashlib.sha256(f"{owner_id}\0{subject_id}".encode()).digest()).decode().lower()
    others = select(Subject.trigger_word).where(Subject.owner_id == owner_id, Subject.id != subject_id)
    taken = set(session.exec(others.where(col(Subject.trigger_word).is_not(None))))
    words = (stem + digest[:length] for length in range(_DIGEST_CHARACTERS, len(digest)))
    return next(word for word in words if word not in taken)
