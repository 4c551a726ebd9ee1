"""The list of subjects, and the page of one: its pictures, settings, prices and trainings."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal
from uuid import uuid4

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from core.errors import IllegalMove, KeyReused, SpecInvalid
from jobs import overview, service
from jobs.deletion import requests
from jobs.owners import accounts
from jobs.requests.envelope import subject_name
from jobs.services import Services
from jobs.subjects import subject_notes, subject_settings
from jobs.view import JobView
from storage.tables.deletions import DeletionKind
from storage.tables.jobs import ACTIVE, Status
from storage.tables.pictures import Subject
from training.spec import MAX_CAPTION_CHARACTERS, CaptionSource
from web.auth import ServicesDep
from web.pages import subject_form
from web.pages.messages import in_words
from web.pages.question import ask_before_second
from web.pages.render import render, segment
from web.pages.session import PageReaderDep, PageRoute, PageTrainerDep
from web.pages.subject_form import PLAIN, SentForm, TrainForm, TypedForm
from web.pages.texts import count, gettext, number
from web.parameters import FormKey, SubjectId, page_key
from web.partial_files import PIECE_BYTES, FileOfPieces
from web.uploads import max_upload_bytes, store_piece, store_uploads

router = APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=Response)

_MAX_TRAININGS = 20  # on the page of a subject; the others are on a page of their own
_MAX_SUBJECTS = 60  # on a page
_READY = (Status.READY,)


@router.get("/")
def index(
    request: Request, services: ServicesDep, caller: PageReaderDep, page: Annotated[int, Query(ge=1, le=10_000)] = 1
) -> Response:
    found, total = overview.list_subjects(
        services, caller.owner_id, offset=(page - 1) * _MAX_SUBJECTS, limit=_MAX_SUBJECTS
    )
    return render(
        request,
        "subjects.html",
        subjects=found,
        total=total,
        page=page,
        per_page=_MAX_SUBJECTS,
        deletions={
            one.subject_id: one for one in requests.list_open(services, caller.owner_id, kind=DeletionKind.SUBJECT)
        },
        may_train="train" in caller.token.scopes,
    )


@router.get("/subjects")
def open_subject(_: PageReaderDep, name: Annotated[str, Query(max_length=400)] = "") -> Response:
    if not name.strip():
        return RedirectResponse("/", 303)
    name = subject_name(name)
    if name in (".", ".."):
        raise SpecInvalid.of({"name": "must have a letter or a digit: browsers cannot open an address that ends so"})
    return _redirect(name)


# ---- the page of a subject ------------------------------------------------------------------------------------


@router.get("/subjects/{id}")
def subject(
    request: Request,
    services: ServicesDep,
    caller: PageReaderDep,
    subject_id: SubjectId,
    typed: TypedForm,
    like: Annotated[str, Query(max_length=100, pattern=r"^[a-z0-9_]*$")] = "",
) -> Response:
    owner_id = caller.owner_id
    kept = subject_settings.get(services, owner_id, subject_id)
    trainings = service.jobs(services, owner_id=owner_id, subject_id=subject_id, limit=_MAX_TRAININGS + 1)
    saved = TrainForm.of_subject(kept)
    form = _prefilled(services, kept, like, trainings).typed(**typed)
    pictures = subject_form.list_pictures(services, kept, form)
    good = subject_form.good_ids(services, pictures)
    quote, faults = subject_form.quoted(services, owner_id, form, good)
    usual, _ = subject_form.quoted(services, owner_id, saved, good)
    return render(
        request,
        "subject.html",
        subject_id=subject_id,
        kept=kept,
        pictures=pictures,
        good=len(good),
        most=services.settings.max_pictures,
        most_characters=MAX_CAPTION_CHARACTERS,
        most_bytes=services.settings.max_picture_bytes,
        most_upload_bytes=max_upload_bytes(services.settings),
        piece_bytes=PIECE_BYTES,
        notes=subject_notes.get(services, owner_id, subject_id),
        bases=subject_form.bases(services, owner_id, form, good),
        chosen=form,
        quote=quote,
        faults=faults,
        obstacles=subject_form.obstacles(form, good, quote, subject_form.where_is(services, form)),
        usual=usual,
        not_automatic=[*_not_set_up(kept), *subject_form.obstacles(saved, good, usual)],
        running=next((view for view in trainings if view.status in ACTIVE), None),
        ready=next(
            iter(service.jobs(services, owner_id=owner_id, subject_id=subject_id, statuses=_READY, limit=1)), None
        ),
        trainings=trainings[:_MAX_TRAININGS],
        has_more=len(trainings) > _MAX_TRAININGS,
        available=accounts.balance(services, owner_id).available,
        caption_sources=_caption_sources(services),
        key=uuid4().hex,
        deletion=requests.find_open(services, DeletionKind.SUBJECT, owner_id, subject_id),
        may_train="train" in caller.token.scopes,
    )


def _prefilled(services: Services, kept: Subject, like: str, trainings: Sequence[JobView]) -> TrainForm:
    """The form with the recipe of the training `like`, else the subject's settings, else those of its last training.

    `PLAIN` as `like`: the recipe is the base model's own.
    """
    if like == PLAIN:
        return TrainForm(kept.base_model or "sd15", kept.trigger_word or "", kept.class_word or "", like=PLAIN)
    if like:
        return TrainForm.of_training(service.get(services, like, kept.owner_id))
    if kept.base_model or kept.recipe:
        saved = TrainForm.of_subject(kept)
        return saved if kept.base_model else replace(saved, base_model=subject_form.usable_base(services))
    if trainings:
        return replace(TrainForm.of_training(trainings[0]), like="")
    return replace(TrainForm.of_subject(kept), base_model=subject_form.usable_base(services))


def _not_set_up(kept: Subject) -> list[str]:
    return [] if kept.base_model else [gettext("Save a base model first.")]


# ---- forms ----------------------------------------------------------------------------------------------------


def _form_of(services: Services, kept: Subject, sent: dict[str, str]) -> TrainForm:
    """The form as it was sent, with the options that it has no fields for."""
    return _prefilled(services, kept, sent["like"], ()).typed(**sent)


@router.post("/subjects/{id}/settings")
def save(services: ServicesDep, caller: PageTrainerDep, subject_id: SubjectId, sent: SentForm) -> Response:
    form = _form_of(services, subject_settings.get(services, caller.owner_id, subject_id), sent)
    subject_settings.change(services, caller.owner_id, subject_id, form.settings())
    return _redirect(subject_id, "saved")


@router.post("/subjects/{id}/automatic")
def automatic(
    services: ServicesDep, caller: PageTrainerDep, subject_id: SubjectId, on: Annotated[Literal["yes", "no"], Form()]
) -> Response:
    kept = subject_settings.get(services, caller.owner_id, subject_id)
    if on == "yes":
        saved = TrainForm.of_subject(kept)
        good = subject_form.good_ids(services, subject_form.list_pictures(services, kept, saved))
        usual, _ = subject_form.quoted(services, caller.owner_id, saved, good)
        if obstacles := [*_not_set_up(kept), *subject_form.obstacles(saved, good, usual)]:
            raise IllegalMove(" ".join(obstacles))
    subject_settings.change(services, caller.owner_id, subject_id, {"train_automatically": on == "yes"})
    return _redirect(subject_id, "on" if on == "yes" else "off")


@router.post("/subjects/{id}/train")
def start(
    request: Request,
    services: ServicesDep,
    caller: PageTrainerDep,
    subject_id: SubjectId,
    key: FormKey,
    credits_shown: Annotated[int, Form(ge=0)],
    sent: SentForm,
    review: Annotated[str, Form(max_length=20)] = "",
    beside: Annotated[str, Form(max_length=3)] = "",
) -> Response:
    """Save the settings and start a training, unless it costs more than the page has shown."""
    owner_id = caller.owner_id
    if not sent["trigger_word"].strip():
        raise SpecInvalid.of({"trigger_word": gettext("Enter a trigger word.")})
    kept = subject_settings.get(services, owner_id, subject_id)
    form = _form_of(services, kept, sent)
    good = subject_form.good_ids(services, subject_form.list_pictures(services, kept, form))
    quote, faults = subject_form.quoted(services, owner_id, form, good)
    if quote is None:
        raise SpecInvalid.of(faults)
    started = service.find_started(services, owner_id, page_key(key))
    if obstacles := subject_form.obstacles(form, good, quote, subject_form.where_is(services, form)):
        if started:
            return _started(started)  # the form was sent before, and its training took the credits
        raise IllegalMove(" ".join(obstacles))
    _check_price(quote.credits, credits_shown)

    def ask(key: str | None = None) -> Response | None:
        action, fields = (
            f"/subjects/{segment(subject_id)}/train",
            {**sent, "credits_shown": credits_shown, "review": review},
        )
        return ask_before_second(request, services, owner_id, subject_id, action, fields, key)

    if not beside and (question := ask(page_key(key))):
        return question
    subject_settings.change(services, owner_id, subject_id, form.settings())
    asked = {**form.arguments(), "review": bool(review) or None}
    given = subject_settings.training_arguments(services, owner_id, subject_id, {**asked, "images": good})
    try:
        view = service.submit(services, {**given, "idempotency_key": page_key(key)})
    except KeyReused:  # after "Back", with other values: the form's key has started a training already
        if question := ask():
            return question
        view = service.submit(services, {**given, "idempotency_key": page_key(uuid4().hex)})
    return _started(view.job_id)


def _check_price(price: int, shown: int) -> None:
    """Raises IllegalMove if the training costs more than the page has shown."""
    if price > shown:
        dearer = gettext(
            "The training now costs %(credits)s instead of %(shown)s, because the pictures or settings have changed. "
            "Reload the page, check the price, and start again."
        )
        raise IllegalMove(dearer % {"credits": count(price, "credit"), "shown": number(shown)})


def _caption_sources(services: Services) -> list[tuple[CaptionSource, str]]:
    """What the owner can choose for captions, in words."""
    sources: list[tuple[CaptionSource, str]] = [("given", gettext("Mine, where I wrote some"))]
    if services.settings.captioner or services.settings.caption_task:
        sources.append(("auto", gettext("Write those that are missing")))
    return [*sources, ("template", gettext("The same for all pictures"))]


def _started(job_id: str) -> Response:
    return RedirectResponse(f"/trainings/{job_id}?notice=started", 303)


@router.post("/subjects/{id}/images")
async def upload(request: Request, services: ServicesDep, caller: PageTrainerDep, subject_id: SubjectId) -> Response:
    """Store the files of the form. The script sends them one by one and gets the API's JSON."""
    is_script = request.headers.get("accept") == "application/json"
    stored = await store_uploads(request, services, caller, subject_id, naming="none" if is_script else "name")
    if is_script:
        return JSONResponse(in_words(stored.model_dump(mode="json", by_alias=True)), 201)
    return _redirect(subject_id, "some" if stored.notes else "uploaded")


@router.post("/subjects/{id}/uploads")
async def upload_piece(
    request: Request,
    services: ServicesDep,
    caller: PageTrainerDep,
    subject_id: SubjectId,
    name: Annotated[str, Query(min_length=1, max_length=400)],
    size: Annotated[int, Query(ge=1, le=2**53)],
    modified: Annotated[int, Query(ge=0, le=2**53)] = 0,
    offset: Annotated[int, Query(ge=0, le=2**53)] = 0,
) -> Response:
    """Add the body to a large file at `offset`. The answer says how far the file is: an empty body only asks."""
    file = FileOfPieces(subject_id, name, size, modified)
    stored = await store_piece(request, services, caller, subject_id, file, offset)
    if isinstance(stored, int):
        return JSONResponse({"offset": stored})
    return JSONResponse(in_words(stored.model_dump(mode="json", by_alias=True)), 201)


@router.post("/subjects/{id}/delete")
def delete(services: ServicesDep, caller: PageTrainerDep, subject_id: SubjectId) -> Response:
    deletion = requests.delete_subject(services, caller.owner_id, subject_id, services.settings.web_undo_s)
    if deletion.status != "waiting":
        return RedirectResponse("/account?notice=deleting", 303)
    return _redirect(subject_id, "deleting")


@router.post("/subjects/{id}/notes/dismiss")
def dismiss_notes(
    services: ServicesDep, caller: PageTrainerDep, subject_id: SubjectId,
    back: Annotated[Literal["", "/captions"], Form()] = "",
) -> Response:  # fmt: skip
    subject_notes.dismiss(services, caller.owner_id, subject_id)
    return RedirectResponse(f"/subjects/{segment(subject_id)}{back and f'{back}#all'}", 303)


def _redirect(subject_id: str, notice: str = "") -> Response:
    return RedirectResponse(f"/subjects/{segment(subject_id)}{f'?notice={notice}' if notice else ''}", 303)
