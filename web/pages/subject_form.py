"""The form that starts a training of a subject: where its values come from, what it costs, and why it cannot start."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from fastapi import Depends, Form, Query
from pydantic import ValidationError

from core.errors import SpecInvalid
from jobs.admission.live import LiveBases, live_bases
from jobs.requests import quotes, recipe_options
from jobs.requests.quotes import Quote
from jobs.services import Services
from jobs.subjects import presets, subject_pictures, subject_recipe
from jobs.subjects.subject_pictures import SubjectPicture
from jobs.view import JobView
from storage.tables.pictures import Subject
from training.data.framing import Frame
from training.families.registry import BASE_MODELS, FAMILIES
from training.spec import MIN_PICTURES, CaptionSource, TrainSpec
from web.pages.texts import count, gettext, ngettext, number
from web.problems import refusal

_NUMBERS = ("max_steps", "resolution")
_FIELDS = (*_NUMBERS, "captions")  # of the recipe, that the form has
PLAIN = "plain"  # in place of the id of a training whose recipe to show
_PLACEHOLDER = "x"  # for a quote, which does not depend on subject and trigger word


@dataclass(frozen=True)
class TrainForm:
    """The form's fields, as they were typed, and the options of the recipe that it has no fields for.

    `like`: the training whose recipe it shows.
    """

    base_model: str
    trigger_word: str = ""
    class_word: str = ""
    max_steps: str = ""
    resolution: str = ""
    captions: str = ""  # empty: the recipe's default
    like: str = ""
    others: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_subject(cls, kept: Subject) -> "TrainForm":
        """The form with a subject's settings."""
        recipe = kept.recipe or {}
        return cls(kept.base_model or "sd15", kept.trigger_word or "", kept.class_word or "", **_split(recipe))

    @classmethod
    def of_training(cls, job: JobView) -> "TrainForm":
        """The form with the recipe of a training; without it, if the form does not offer its base model."""
        spec = job.spec
        if spec.base_model not in BASE_MODELS:
            return cls("sd15", spec.trigger_word, spec.class_word)
        recipe = subject_recipe.of_spec(spec)
        return cls(spec.base_model, spec.trigger_word, spec.class_word, like=job.job_id, **_split(recipe))

    def typed(self, **fields: str | None) -> "TrainForm":
        """The form with the fields that were sent; None: was not sent."""
        typed: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
        form = replace(self, **typed)
        return replace(form, others=presets.with_words(self.others, self._words, form._words))

    @property
    def _words(self) -> tuple[str | None, str | None]:
        return self.trigger_word.strip() or None, self.class_word.strip() or None

    def recipe(self) -> dict[str, Any]:
        """The options of the recipe, with the form's numbers. Raises SpecInvalid for text that is not a number."""
        recipe, faults = dict(self.others), {}
        if self.captions not in ("", "given"):
            recipe["captions"] = self.captions
        for name in _NUMBERS:
            value = getattr(self, name).strip()
            if value and not (value.isascii() and value.isdigit()):
                faults[name] = "must be a whole number"
            elif value:
                recipe[name] = int(value)
        if faults:
            raise SpecInvalid.of(faults)
        return recipe

    def arguments(self) -> dict[str, Any]:
        """The form as arguments of `quotes.quote`. Raises SpecInvalid as `recipe` does."""
        return {**self.recipe(), "base_model": self.base_model or "sd15"}

    def settings(self) -> dict[str, Any]:
        """The form as a subject's settings. Raises SpecInvalid as `recipe` does."""
        words = {"trigger_word": self.trigger_word, "class_word": self.class_word, "base_model": self.base_model}
        return {**{name: value.strip() or None for name, value in words.items()}, "recipe": self.recipe() or None}

    def with_recipe(self, recipe: Mapping[str, Any]) -> "TrainForm":
        """The form with another recipe."""
        return replace(self, **{**dict.fromkeys(_FIELDS, ""), **_split(recipe)})

    def spec(self) -> TrainSpec:
        """The form as a recipe, with a word in place of the trigger word. Raises SpecInvalid as `recipe` does."""
        return TrainSpec.model_validate({"trigger_word": _PLACEHOLDER, "seed": 0, **self.arguments()})

    @property
    def needed(self) -> int:
        """How many good pictures the training needs."""
        held_out = (self.others.get("validation") or {}).get("held_out", 0)
        return MIN_PICTURES + int(held_out)

    @property
    def options_without_fields(self) -> dict[str, Any]:
        """The values of the other options by their paths."""
        return recipe_options.by_path(self.others)


def _split(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as the form's fields and the other options."""
    typed = {name: str(recipe[name]) for name in _FIELDS if recipe.get(name) is not None}
    return {**typed, "others": {name: value for name, value in recipe.items() if name not in _FIELDS}}


# ---- pictures, price, obstacles -------------------------------------------------------------------------------


def frame_of(form: TrainForm) -> Frame:
    """The size that pictures are judged for: the form's, or its base model's where the form has none that is valid."""
    named: dict[str, Any] = {"base_model": "sd15", "trigger_word": "x", "seed": 0}
    spec = TrainSpec.model_validate(named)
    with suppress(ValidationError, SpecInvalid):
        asked = form.arguments()
        spec = TrainSpec.model_validate({**named, "base_model": asked["base_model"]})
        size = {name: asked[name] for name in ("resolution", "aspect_buckets") if name in asked}
        spec = TrainSpec.model_validate({**named, "base_model": asked["base_model"], **size})
    return subject_pictures.frame_of(spec)


def list_pictures(services: Services, kept: Subject, form: TrainForm) -> list[SubjectPicture]:
    """A subject's pictures with their verdicts for the form's base model and resolution."""
    return subject_pictures.list_pictures(services, kept.owner_id, kept.id, frame_of(form))


def good_ids(services: Services, pictures: list[SubjectPicture]) -> list[str]:
    """Ids of the pictures that a training would use: the newest, as many as a job may have."""
    return [picture.id for picture in pictures if picture.verdict != "bad"][-services.settings.max_pictures :]


def quoted(services: Services, owner_id: str, form: TrainForm, good: list[str]) -> tuple[Quote | None, dict[str, str]]:
    """The quote for a form, or what is wrong with it. With too few pictures it is the quote for the least number."""
    images = [*good, *(f"pic_{at}" for at in range(form.needed - len(good)))]
    request = {"owner_id": owner_id, "subject_id": _PLACEHOLDER, "trigger_word": _PLACEHOLDER, "images": images}
    try:
        return quotes.quote(services, {**request, **form.arguments()}), {}
    except SpecInvalid as error:
        return None, refusal(error).faults


@dataclass(frozen=True)
class BaseChoice:
    """A base model that the form offers, with its price."""

    name: str
    title: str
    about: str
    resolution: int
    quote: Quote | None
    where: str  # the workers' word on it: `here`, `download`, `nowhere`, or `unknown`
    is_near: bool  # it is chosen, or a worker has it: the others are folded away


def bases(services: Services, owner_id: str, form: TrainForm, good: list[str]) -> list[BaseChoice]:
    """The base models to choose from; first those that a worker can train."""
    made = []
    live = _live(services, form)
    settings = services.settings
    has_servers = settings.ai_toolkit_url is not None or settings.runpod_api_key is not None
    for name, base in BASE_MODELS.items():
        is_trained = FAMILIES[base.family].code is not None or has_servers or name == form.base_model
        if base.family in settings.disabled_families or not is_trained:
            continue
        of_base = replace(form, base_model=name)
        quote, _ = quoted(services, owner_id, of_base, good)
        where = live.where(name)
        is_near = where == "here" or name == form.base_model
        made.append(BaseChoice(name, base.title, base.about, frame_of(of_base).resolution, quote, where, is_near))
    return sorted(made, key=lambda one: one.where == "nowhere")


def where_is(services: Services, form: TrainForm) -> str:
    """What the workers say of the form's base model, as in `BaseChoice`."""
    base = BASE_MODELS.get(form.base_model)
    if base is None or base.family in services.settings.disabled_families:
        return "unknown"
    return _live(services, form).where(base.name)


def _live(services: Services, form: TrainForm) -> LiveBases:
    """What the workers have, if one of them will train the form's recipe; else nothing is known."""
    return live_bases(services) if form.others.get("backend", "local") == "local" else LiveBases()


def usable_base(services: Services) -> str:
    """The base model of a form that names none: the first that a worker has, else the first of all."""
    live = live_bases(services)
    names = [name for name, base in BASE_MODELS.items() if base.family not in services.settings.disabled_families]
    return next((name for name in names if live.where(name) == "here"), names[0] if names else "sd15")


def obstacles(form: TrainForm, good: list[str], quote: Quote | None, where: str = "unknown") -> list[str]:
    """Why no training can start, in sentences. `where`: the result of `where_is`."""
    reasons = []
    if where == "nowhere":
        title = BASE_MODELS[form.base_model].title
        nowhere = gettext("No worker of this service has %(base)s: choose another base model, or ask the operator.")
        reasons.append(nowhere % {"base": title})
    if len(good) < form.needed:
        few = gettext("A training needs %(needed)s good pictures; %(there)s.")
        reasons.append(few % {"needed": form.needed, "there": _there(len(good))})
    if quote is not None and quote.available < quote.credits:
        dear = gettext("It costs %(credits)s; you have %(available)s.")
        reasons.append(dear % {"credits": count(quote.credits, "credit"), "available": number(quote.available)})
    return reasons


def _there(good: int) -> str:
    if not good:
        return gettext("there are none yet")
    return ngettext("there is %(number)s", "there are %(number)s", good).replace("%(number)s", number(good))


def typed_form(
    trigger_word: Annotated[str | None, Query(max_length=500)] = None,
    class_word: Annotated[str | None, Query(max_length=500)] = None,
    base_model: Annotated[str | None, Query(max_length=300)] = None,
    max_steps: Annotated[str | None, Query(max_length=20)] = None,
    resolution: Annotated[str | None, Query(max_length=20)] = None,
) -> dict[str, str | None]:
    """A dependency: the fields of the form in the page's address. None: not given."""
    return {
        "trigger_word": trigger_word,
        "class_word": class_word,
        "base_model": base_model,
        "max_steps": max_steps,
        "resolution": resolution,
    }


TypedForm = Annotated[dict[str, str | None], Depends(typed_form)]


def sent_form(
    like: Annotated[str, Form(max_length=100, pattern=r"^[a-z0-9_]*$")] = "",
    trigger_word: Annotated[str, Form(max_length=500)] = "",
    class_word: Annotated[str, Form(max_length=500)] = "",
    base_model: Annotated[str, Form(max_length=300)] = "",
    max_steps: Annotated[str, Form(max_length=20)] = "",
    resolution: Annotated[str, Form(max_length=20)] = "",
    captions: Annotated[CaptionSource | Literal[""], Form()] = "",
) -> dict[str, str]:
    """A dependency: the fields of the form. An empty field is one that was emptied."""
    return {
        "like": like,
        "trigger_word": trigger_word,
        "class_word": class_word,
        "base_model": base_model,
        "max_steps": max_steps,
        "resolution": resolution,
        "captions": captions,
    }


SentForm = Annotated[dict[str, str], Depends(sent_form)]
