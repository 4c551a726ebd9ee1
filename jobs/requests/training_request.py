"""A training request, parsed and validated: all faults of a request are reported together."""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from core.errors import SpecInvalid
from core.settings import Settings
from jobs.requests.envelope import Envelope, faults_of, unknown_names
from jobs.requests.installation import base_model_faults, envelope_faults, spec_faults
from storage.sources import Sources
from training.base_recipe import with_recipe_of
from training.families.registry import FAMILIES
from training.spec import MIN_PICTURES, TrainSpec, base_model_location


@dataclass(frozen=True)
class TrainingRequest:
    """A valid request, as `parse` returns it."""

    envelope: Envelope
    spec: TrainSpec
    sha256: str  # of the request as it was sent: the same idempotency key must come with the same hash


_ENVELOPE = frozenset(Envelope.model_fields)
_RECIPE = frozenset(TrainSpec.model_fields)


def parse(arguments: Mapping[str, Any], settings: Settings, sources: Sources) -> TrainingRequest:
    """Check `arguments` of `train_lora`; `images` may hold addresses, ids, or objects as in `RequestedImage`.

    Raises SpecInvalid with every fault at once.
    """
    known = _ENVELOPE | _RECIPE
    faults = {
        name: f"unknown argument; the arguments are {', '.join(sorted(known))}"
        for name in unknown_names(arguments, known)
    }
    envelope = spec = None
    try:
        envelope = _parse_envelope(arguments)
    except ValidationError as error:
        faults |= faults_of(error)
    try:
        spec = _parse_spec(arguments, settings)
    except SpecInvalid as error:
        faults |= error.faults
    except ValidationError as error:
        faults |= faults_of(error)
    if envelope is not None:
        faults |= envelope_faults(envelope, settings, sources)
    if spec is not None and envelope is not None:
        faults |= _mismatches(spec, envelope)
    if spec is not None:
        faults |= spec_faults(spec, settings)
    if faults or envelope is None or spec is None:
        raise SpecInvalid.of(faults)
    return TrainingRequest(envelope, spec, _sha256(arguments))


def _parse_envelope(arguments: Mapping[str, Any]) -> Envelope:
    given = {name: value for name, value in arguments.items() if name in _ENVELOPE and value is not None}
    if isinstance(given.get("images"), list):
        given["images"] = [{"ref": image} if isinstance(image, str) else image for image in given["images"]]
    return Envelope.model_validate(given)


def _parse_spec(arguments: Mapping[str, Any], settings: Settings) -> TrainSpec:
    """The recipe, with what is frozen into it at the start: the seed, the base model's recipe and the backend."""
    recipe = {"seed": secrets.randbits(48)} | {
        name: value for name, value in arguments.items() if name in _RECIPE and value is not None
    }
    base_model = recipe.get("base_model")
    if isinstance(base_model, str) and not base_model_faults(base_model.strip(), settings):
        recipe = with_recipe_of(base_model_location(base_model.strip(), settings.base_models), recipe)
    spec = TrainSpec.model_validate(recipe)
    if "backend" in recipe:
        return spec
    usual = spec.backend if FAMILIES[spec.family].code is not None else "ai-toolkit"
    return spec.model_copy(update={"backend": settings.backends.get(spec.family, usual)})


def _mismatches(spec: TrainSpec, envelope: Envelope) -> dict[str, str]:
    """Where the recipe and the pictures do not fit together."""
    faults = {}
    left = len(envelope.images) - spec.validation.held_out
    if left < MIN_PICTURES:
        faults["validation.held_out"] = f"leaves {left} pictures to train on; a training needs at least {MIN_PICTURES}"
    if not spec.objective.masked and any(image.mask for image in envelope.images):
        faults["objective.masked"] = "the pictures have masks: set this to true, or leave the masks out"
    return faults


def _sha256(arguments: Mapping[str, Any]) -> str:
    asked = {name: value for name, value in arguments.items() if value is not None}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()
