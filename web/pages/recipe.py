"""The recipe of a subject: a preset for what it is, every option with its help, and the recipe as JSON."""

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from core.errors import SpecInvalid
from jobs import service
from jobs.requests import recipe_options
from jobs.services import Services
from jobs.subjects import presets, subject_recipe, subject_settings
from storage.tables.pictures import Subject
from training.families.registry import BASE_MODELS, FAMILIES
from training.spec import Learns, TrainSpec
from web.auth import Caller, ServicesDep
from web.pages import options, subject_form
from web.pages.render import render, segment
from web.pages.session import PageReaderDep, PageRoute, PageTrainerDep
from web.pages.subject_form import TrainForm
from web.pages.texts import decimal_mark, gettext, number
from web.parameters import SubjectId

router = APIRouter(prefix="/subjects/{id}/recipe", route_class=PageRoute, include_in_schema=False)

_MAX_JSON = 20_000
_LISTED, _SIDES = "validation.previews", "data.resolutions"


@dataclass(frozen=True)
class OptionField:
    """One option in the form. `choices`: what can be chosen; empty for a field to type into."""

    name: str
    help: str
    typed: str
    default: str
    choices: tuple[str, ...]
    refused: str | None  # why the family does not have it
    fault: str | None
    more: str | None  # where the docs tell more

    @property
    def is_changed(self) -> bool:
        return bool(self.typed)


@router.get("")
def recipe(request: Request, services: ServicesDep, caller: PageReaderDep, subject_id: SubjectId) -> Response:
    kept = subject_settings.get(services, caller.owner_id, subject_id)
    return _page(request, services, caller, kept, _typed(kept.recipe or {}), {})


def _page(
    request: Request, services: Services, caller: Caller, kept: Subject, typed: dict[str, str], faults: dict[str, str],
    text: str | None = None,
) -> Response:  # fmt: skip
    base_model = kept.base_model or "sd15"
    fields = _fields(base_model, typed, faults, services.settings.web_docs_url)
    known = {f"recipe.{field.name}" for field in fields}
    others = {name: fault for name, fault in faults.items() if name not in known}
    return render(
        request,
        "recipe.html",
        422 if faults else 200,
        subject_id=kept.id,
        kept=kept,
        base=BASE_MODELS[base_model],
        presets=[(one, _sets(one.kind, kept)) for one in presets.PRESETS],
        kind=presets.kind_of(kept.class_word),
        fields=fields,
        changed=sum(field.is_changed for field in fields),
        faults=others,
        text=text if text is not None else json.dumps(_shared(kept), indent=2, ensure_ascii=False),
        trainings=service.jobs(services, owner_id=caller.owner_id, limit=50),
        may_train="train" in caller.token.scopes,
    )


def _sets(kind: Learns, kept: Subject) -> dict[str, Any]:
    """What a preset sets on the subject's base model, without the prompts. A family lacks some of the options."""
    recipe = recipe_options.by_path(presets.recipe_for(kind, kept.base_model, kept.trigger_word, kept.class_word))
    return {name: value for name, value in recipe.items() if name not in ("learns", _LISTED)}


def _fields(base_model: str, typed: dict[str, str], faults: dict[str, str], docs_url: str | None) -> list[OptionField]:
    usual = recipe_options.flat(recipe_options.defaults(base_model))
    refused = FAMILIES[BASE_MODELS[base_model].family].refused
    return [
        OptionField(
            name, gettext(recipe_options.help_of(name)), typed.get(name, ""),
            options.value(None if name == "seed" else default, name),  # that of the defaults is only a placeholder
            _choices(name), refused.get(name),
            faults.get(f"recipe.{name}") or faults.get(f"recipe.{name.partition('.')[0]}"),
            options.docs_link(name, docs_url),
        )
        for name, default in usual.items()
    ]  # fmt: skip


def _choices(name: str) -> tuple[str, ...]:
    group, _, option = name.partition(".")
    kind: Any = TrainSpec.model_fields[group].annotation
    if option:
        kind = kind.model_fields[option].annotation
    kind = next((one for one in get_args(kind) if get_origin(one) is Literal), kind)  # of an optional one
    if kind is bool:
        return ("yes", "no")
    return get_args(kind) if get_origin(kind) is Literal else ()


def _typed(recipe: dict[str, Any]) -> dict[str, str]:
    """A stored recipe as the form's fields."""
    return {name: _as_typed(name, value) for name, value in recipe_options.by_path(recipe).items()}


def _as_typed(name: str, value: Any) -> str:
    """A value as `_value` reads it."""
    if name == _LISTED:
        return "\n".join(value)
    if isinstance(value, float):
        return number(value, "g")
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else recipe_options.as_text(value)


def _shared(kept: Subject) -> dict[str, Any]:
    return {"base_model": kept.base_model or "sd15", **(kept.recipe or {})}


# ---- forms --------------------------------------------------------------------------------------------------------


@router.post("")
async def save(request: Request, services: ServicesDep, caller: PageTrainerDep, subject_id: SubjectId) -> Response:
    form = await request.form(max_files=0, max_fields=200)
    typed = {name: value.strip() for name, value in form.items() if isinstance(value, str) and value.strip()}
    kept = subject_settings.get(services, caller.owner_id, subject_id)
    try:
        subject_settings.change(services, caller.owner_id, subject_id, {"recipe": _parsed(typed) or None})
    except SpecInvalid as error:
        return _page(request, services, caller, kept, typed, error.faults)
    return _to_recipe(subject_id, "recipe")


def _parsed(typed: dict[str, str]) -> dict[str, Any]:
    """The form's fields as a recipe; what is not valid is left for its check."""
    return recipe_options.nested({name: _value(name, text) for name, text in typed.items()})


def _value(name: str, text: str) -> Any:
    if name == _LISTED:
        return [line.strip() for line in text.splitlines() if line.strip()]
    if text in ("yes", "no"):
        return text == "yes"
    if name == _SIDES:
        text = f"[{text.strip('[]')}]"
    elif decimal_mark() == "," and re.fullmatch(r"\d+,\d+(e-?\d+)?", text):
        text = text.replace(",", ".")
    try:
        return json.loads(text)
    except ValueError:
        return text


@dataclass(frozen=True)
class PresetUse:
    """A preset on a subject's recipe: the form of a training before and after it, and the good pictures of each."""

    before: TrainForm
    after: TrainForm
    good_before: list[str]
    good_after: list[str]
    recipe: dict[str, Any]  # with the preset

    @classmethod
    def of(cls, services: Services, kept: Subject, kind: Learns) -> "PresetUse":
        before = TrainForm.of_subject(kept)
        good = _good(services, kept, before)
        made = presets.recipe_for(kind, kept.base_model, kept.trigger_word, kept.class_word)
        recipe = presets.added_to(kept.recipe or {}, made, kept.base_model, len(good))
        after = before.with_recipe(recipe)
        is_same_size = subject_form.frame_of(after) == subject_form.frame_of(before)
        return cls(before, after, good, good if is_same_size else _good(services, kept, after), recipe)


def _good(services: Services, kept: Subject, form: TrainForm) -> list[str]:
    return subject_form.good_ids(services, subject_form.list_pictures(services, kept, form))


@router.get("/preset")
def preset(
    request: Request, services: ServicesDep, caller: PageReaderDep, subject_id: SubjectId, kind: Learns | None = None
) -> Response:
    """What a preset would change, and the price before and after: nothing is stored yet."""
    kept = subject_settings.get(services, caller.owner_id, subject_id)
    if kind is None:
        return _to_recipe(subject_id)
    return _preset_page(request, services, caller, kept, kind, PresetUse.of(services, kept, kind), is_used=False)


@router.post("/preset")
def use_preset(
    request: Request, services: ServicesDep, caller: PageTrainerDep, subject_id: SubjectId,
    kind: Annotated[Learns, Form()],
) -> Response:  # fmt: skip
    """Store the recipe with the preset. The answer can undo it."""
    kept = subject_settings.get(services, caller.owner_id, subject_id)
    use = PresetUse.of(services, kept, kind)
    subject_settings.change(services, caller.owner_id, subject_id, {"recipe": use.recipe})
    return _preset_page(request, services, caller, kept, kind, use, is_used=True)


def _preset_page(
    request: Request, services: Services, caller: Caller, kept: Subject, kind: Learns, use: PresetUse, *, is_used: bool
) -> Response:
    """`kept`: the subject as it was before."""
    return render(
        request,
        "preset.html",
        subject_id=kept.id,
        preset=presets.BY_KIND[kind],
        changes=recipe_options.changes(use.before.spec(), use.after.spec()),
        before=_credits(services, kept, use.before, use.good_before),
        after=_credits(services, kept, use.after, use.good_after),
        is_used=is_used,
        old=_typed(kept.recipe or {}),
        may_train="train" in caller.token.scopes,
    )


def _credits(services: Services, kept: Subject, form: TrainForm, good: list[str]) -> int | None:
    """What a training of the subject's good pictures costs; None: it cannot be priced."""
    quote, _ = subject_form.quoted(services, kept.owner_id, form, good)
    return quote.credits if quote else None


@router.post("/import")
def import_json(
    request: Request,
    services: ServicesDep,
    caller: PageTrainerDep,
    subject_id: SubjectId,
    text: Annotated[str, Form(max_length=_MAX_JSON)] = "",
) -> Response:
    """Take over a recipe as JSON, with its base model if that is named."""
    kept = subject_settings.get(services, caller.owner_id, subject_id)
    try:
        given = json.loads(text)
        if not isinstance(given, dict):
            raise ValueError
    except (ValueError, RecursionError):
        return _page(request, services, caller, kept, _typed(kept.recipe or {}), {"JSON": "is not an object"}, text)
    base_model = given.pop("base_model", kept.base_model)
    recipe = {name: value for name, value in given.items() if name in subject_recipe.RECIPE and name != "seed"}
    try:
        changed = {"base_model": base_model, "recipe": recipe or None}
        subject_settings.change(services, caller.owner_id, subject_id, changed)
    except SpecInvalid as error:
        faults = {name.removeprefix("recipe."): fault for name, fault in error.faults.items()}
        return _page(request, services, caller, kept, _typed(kept.recipe or {}), faults, text)
    return _to_recipe(subject_id, "recipe")


@router.get(".json")
def download(services: ServicesDep, caller: PageReaderDep, subject_id: SubjectId) -> Response:
    kept = subject_settings.get(services, caller.owner_id, subject_id)
    text = json.dumps(_shared(kept), indent=2, ensure_ascii=False)
    headers = {"Content-Disposition": 'attachment; filename="recipe.json"'}
    return Response(text, media_type="application/json", headers=headers)


def _to_recipe(subject_id: str, notice: str = "") -> Response:
    return RedirectResponse(f"/subjects/{segment(subject_id)}/recipe{f'?notice={notice}' if notice else ''}", 303)
