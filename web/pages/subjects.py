"""The list of subjects, and the page of one: its pictures, settings, prices and trainings."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic import ValidationError

from core.errors import IllegalMove, SpecInvalid
from jobs import overview, service
from jobs.deletion import requests
from jobs.owners import accounts
from jobs.requests import quotes
from jobs.requests.quotes import Quote
from jobs.requests.training_request import subject_name
from jobs.services import Services
from jobs.subjects import captions, subject_notes, subject_pictures, subject_recipe, subject_settings
from jobs.subjects.subject_pictures import SubjectPicture
from storage.tables.jobs import ACTIVE, Subject
from training.data.framing import Frame
from training.families.registry import BASE_MODELS, FAMILIES
from training.spec import MAX_CAPTION_CHARACTERS, MIN_PICTURES, CaptionSource, TrainSpec
from web.auth import Caller, ServicesDep
from web.files import picture_response
from web.pages.render import count, number, render, segment
from web.pages.session import PageReaderDep, PageRoute, PageTrainerDep
from web.parameters import FormKey, PictureId, SubjectId, page_key
from web.problems import refusal
from web.uploads import max_upload_bytes, store_uploads

router = APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=Response)

_MAX_TRAININGS = 20
_PLACEHOLDER = "x"  # for a quote, which does not depend on subject and trigger word


@router.get("/")
def index(request: Request, services: ServicesDep, caller: PageReaderDep) -> Response:
    return render(request, "subjects.html", subjects=overview.list_subjects(services, caller.owner_id))


@router.get("/subjects")
def open_subject(name: Annotated[str, Query(min_length=1, max_length=200)], _: PageReaderDep) -> Response:
    return _redirect(subject_name(name))


# ---- the page of a subject ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainForm:
    """The fields of the form that the price depends on, as they were typed."""

    base_model: str | None = None
    max_steps: str = ""
    resolution: str = ""

    def arguments(self) -> dict[str, Any]:
        """The fields as arguments of `quotes.quote`. Raises SpecInvalid for text that is not a number."""
        arguments: dict[str, Any] = {"base_model": self.base_model or "sd15"}
        faults = {}
        for name in ("max_steps", "resolution"):
            value = getattr(self, name).strip()
            if value and not (value.isascii() and value.isdigit()):
                faults[name] = "must be a whole number"
            elif value:
                arguments[name] = int(value)
        if faults:
            raise SpecInvalid.of(faults)
        return arguments


@router.get("/subjects/{id}")
def subject(
    request: Request,
    services: ServicesDep,
    caller: PageReaderDep,
    subject_id: SubjectId,
    base_model: Annotated[str | None, Query(max_length=300)] = None,
    max_steps: Annotated[str, Query(max_length=20)] = "",
    resolution: Annotated[str, Query(max_length=20)] = "",
) -> Response:
    owner_id = caller.owner_id
    kept = subject_settings.get(services, owner_id, subject_id)
    form = TrainForm(base_model or kept.base_model or "sd15", max_steps, resolution)
    pictures = subject_pictures.list_pictures(services, owner_id, subject_id, _frame(kept, form))
    good = _good(services, pictures)
    quote, faults = _quoted(services, kept, form, good)
    usual, _ = _quoted(services, kept, TrainForm(kept.base_model), good)
    trainings = service.jobs(services, owner_id=owner_id, subject_id=subject_id, limit=_MAX_TRAININGS)
    return render(
        request,
        "subject.html",
        subject_id=subject_id,
        kept=kept,
        pictures=pictures,
        good=len(good),
        needed=MIN_PICTURES,
        most=services.settings.max_pictures,
        most_characters=MAX_CAPTION_CHARACTERS,
        most_bytes=services.settings.max_picture_bytes,
        most_upload_bytes=max_upload_bytes(services.settings),
        notes=subject_notes.get(services, owner_id, subject_id),
        bases=_bases(services, kept, good),
        chosen=form,
        quote=quote,
        faults=faults,
        obstacles=_obstacles(good, quote),
        usual=usual,
        not_automatic=[*_not_set_up(kept), *_obstacles(good, usual)],
        running=next((view for view in trainings if view.status in ACTIVE), None),
        trainings=trainings,
        available=accounts.balance(services, owner_id).available,
        caption_sources=_caption_sources(services),
        key=uuid4().hex,
        may_train="train" in caller.token.scopes,
    )


def _frame(kept: Subject, form: TrainForm) -> Frame:
    """The size that pictures are judged for: the form's, or the subject's where the form has none that is valid."""
    spec = subject_pictures.preview_spec(kept)
    with suppress(ValidationError, SpecInvalid):
        asked = form.arguments()
        if asked["base_model"] != spec.base_model:
            spec = TrainSpec.model_validate({"base_model": asked["base_model"], "trigger_word": "x", "seed": 0})
        if "resolution" in asked:
            spec = TrainSpec.model_validate(spec.model_dump() | {"resolution": asked["resolution"]})
    return subject_pictures.frame_of(spec)


def _good(services: Services, pictures: list[SubjectPicture]) -> list[str]:
    """Ids of the pictures that a training would use: the newest, as many as a job may have."""
    return [picture.id for picture in pictures if picture.verdict != "bad"][-services.settings.max_pictures :]


def _quoted(services: Services, kept: Subject, form: TrainForm, good: list[str]) -> tuple[Quote | None, dict[str, str]]:
    """The quote for a form, or what is wrong with it. With too few pictures it is the quote for the least number."""
    images = [*good, *(f"pic_{at}" for at in range(MIN_PICTURES - len(good)))]
    request = {"owner_id": kept.owner_id, "subject_id": _PLACEHOLDER, "trigger_word": _PLACEHOLDER, "images": images}
    try:
        return quotes.quote(services, subject_recipe.arguments(kept, {**request, **form.arguments()})), {}
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


def _bases(services: Services, kept: Subject, good: list[str]) -> list[BaseChoice]:
    made = []
    for name, base in BASE_MODELS.items():
        if base.family in services.settings.disabled_families:
            continue
        quote, _ = _quoted(services, kept, TrainForm(name), good)
        resolution = (kept.recipe or {}).get("resolution", FAMILIES[base.family].recipe["resolution"])
        made.append(BaseChoice(name, base.title, base.about, resolution, quote))
    return made


def _not_set_up(kept: Subject) -> list[str]:
    return [] if kept.base_model else ["Save a base model first."]


def _obstacles(good: list[str], quote: Quote | None) -> list[str]:
    """Why no training can start, in sentences."""
    reasons = []
    if len(good) < MIN_PICTURES:
        reasons.append(f"A training needs {MIN_PICTURES} good pictures; there {_are(len(good))}.")
    if quote is not None and quote.available < quote.credits:
        reasons.append(f"It costs {count(quote.credits, 'credit')}; you have {number(quote.available)}.")
    return reasons


def _are(good: int) -> str:
    return {0: "are none yet", 1: "is 1"}.get(good, f"are {good}")


# ---- forms ----------------------------------------------------------------------------------------------------


@router.post("/subjects/{id}/settings")
def save(
    services: ServicesDep,
    caller: PageTrainerDep,
    subject_id: SubjectId,
    trigger_word: Annotated[str, Form(max_length=500)] = "",
    class_word: Annotated[str, Form(max_length=500)] = "",
    base_model: Annotated[str, Form(max_length=300)] = "",
) -> Response:
    _save(services, caller, subject_id, trigger_word, class_word, base_model)
    return _redirect(subject_id, "saved")


def _save(
    services: Services, caller: Caller, subject_id: str, trigger_word: str, class_word: str, base_model: str
) -> None:
    words = {"trigger_word": trigger_word, "class_word": class_word, "base_model": base_model}
    values = {name: value.strip() or None for name, value in words.items()}
    subject_settings.change(services, caller.owner_id, subject_id, values)


@router.post("/subjects/{id}/automatic")
def automatic(
    services: ServicesDep, caller: PageTrainerDep, subject_id: SubjectId, on: Annotated[Literal["yes", "no"], Form()]
) -> Response:
    kept = subject_settings.get(services, caller.owner_id, subject_id)
    if on == "yes":
        good = _good(services, subject_pictures.list_pictures(services, caller.owner_id, subject_id))
        usual, _ = _quoted(services, kept, TrainForm(kept.base_model), good)
        if obstacles := [*_not_set_up(kept), *_obstacles(good, usual)]:
            raise IllegalMove(" ".join(obstacles))
    subject_settings.change(services, caller.owner_id, subject_id, {"train_automatically": on == "yes"})
    return _redirect(subject_id, "on" if on == "yes" else "off")


@router.post("/subjects/{id}/train")
def start(
    services: ServicesDep,
    caller: PageTrainerDep,
    subject_id: SubjectId,
    key: FormKey,
    credits_shown: Annotated[int, Form(ge=0)],
    trigger_word: Annotated[str, Form(max_length=500)] = "",
    class_word: Annotated[str, Form(max_length=500)] = "",
    base_model: Annotated[str, Form(max_length=300)] = "",
    max_steps: Annotated[str, Form(max_length=20)] = "",
    resolution: Annotated[str, Form(max_length=20)] = "",
    captions: Annotated[CaptionSource | None, Form()] = None,
    review: Annotated[str, Form(max_length=20)] = "",
) -> Response:
    """Save the settings and start a training, unless it costs more than the page has shown."""
    if not trigger_word.strip():
        raise SpecInvalid.of({"trigger_word": "Enter a trigger word."})
    form = TrainForm(base_model, max_steps, resolution)
    kept = subject_settings.get(services, caller.owner_id, subject_id)
    pictures = subject_pictures.list_pictures(services, caller.owner_id, subject_id, _frame(kept, form))
    good = _good(services, pictures)
    quote, faults = _quoted(services, kept, form, good)
    if quote is None:
        raise SpecInvalid.of(faults)
    if obstacles := _obstacles(good, quote):
        if job_id := service.find_started(services, caller.owner_id, page_key(key)):
            return _started(job_id)  # the form was sent before, and its training took the credits
        raise IllegalMove(" ".join(obstacles))
    if quote.credits > credits_shown:
        raise IllegalMove(
            f"The training now costs {count(quote.credits, 'credit')} instead of {number(credits_shown)}, because the "
            "pictures or settings have changed. Reload the page, check the price, and start again."
        )
    _save(services, caller, subject_id, trigger_word, class_word, base_model)
    given = {**form.arguments(), "images": good, "idempotency_key": page_key(key), "review": bool(review) or None}
    if captions is not None:
        given["captions"] = captions
    view = service.submit(services, subject_settings.training_arguments(services, caller.owner_id, subject_id, given))
    return _started(view.job_id)


def _caption_sources(services: Services) -> list[tuple[CaptionSource, str]]:
    """What the owner can choose for captions, in words."""
    sources: list[tuple[CaptionSource, str]] = [("given", "Mine, where I wrote some")]
    if services.settings.captioner or services.settings.caption_task:
        sources.append(("auto", "Write those that are missing"))
    return [*sources, ("template", "The same for all pictures")]


def _started(job_id: str) -> Response:
    return RedirectResponse(f"/trainings/{job_id}?notice=started", 303)


@router.post("/subjects/{id}/images")
async def upload(request: Request, services: ServicesDep, caller: PageTrainerDep, subject_id: SubjectId) -> Response:
    """Store the files of the form. The script sends them one by one and gets the API's JSON."""
    stored = await store_uploads(request, services, caller, subject_id)
    if request.headers.get("accept") == "application/json":
        return JSONResponse(stored.model_dump(mode="json", by_alias=True), 201)
    return _redirect(subject_id, "some" if stored.refused else "uploaded")


@router.post("/subjects/{id}/delete")
def delete(services: ServicesDep, caller: PageTrainerDep, subject_id: SubjectId) -> Response:
    requests.delete_subject(services, caller.owner_id, subject_id)
    return RedirectResponse("/account?notice=deleting", 303)


@router.get("/subjects/{id}/images/{imageId}")
def picture(services: ServicesDep, caller: PageReaderDep, subject_id: SubjectId, picture_id: PictureId) -> Response:
    data = subject_pictures.preview(services, caller.owner_id, subject_id, picture_id)
    return picture_response(data, "preview.jpg")


@router.post("/subjects/{id}/images/{imageId}/caption")
def caption(
    services: ServicesDep,
    caller: PageTrainerDep,
    subject_id: SubjectId,
    picture_id: PictureId,
    text: Annotated[str, Form(max_length=MAX_CAPTION_CHARACTERS, pattern=r"^[^\x00]*$")] = "",
) -> Response:
    captions.set_all(services, caller.owner_id, subject_id, {picture_id: text})
    return _redirect(subject_id, "captioned")


@router.post("/subjects/{id}/notes/dismiss")
def dismiss_notes(services: ServicesDep, caller: PageTrainerDep, subject_id: SubjectId) -> Response:
    subject_notes.dismiss(services, caller.owner_id, subject_id)
    return _redirect(subject_id)


@router.post("/subjects/{id}/images/{imageId}/remove")
def remove(services: ServicesDep, caller: PageTrainerDep, subject_id: SubjectId, picture_id: PictureId) -> Response:
    subject_pictures.remove(services, caller.owner_id, subject_id, picture_id)
    return _redirect(subject_id, "removed")


def _redirect(subject_id: str, notice: str = "") -> Response:
    return RedirectResponse(f"/subjects/{segment(subject_id)}{f'?notice={notice}' if notice else ''}", 303)
