"""The page of one training: progress, loss, previews, outcome, and how to use the LoRA file."""

import math
from collections.abc import Sequence
from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Form, Header, Query, Request, Response
from fastapi.responses import RedirectResponse

from core.advice import ADVICE
from core.errors import SpecInvalid
from jobs import history, previews, remedies, service
from jobs.admission.live import why_it_waits
from jobs.captioning import review
from jobs.deletion import requests
from jobs.owners import accounts
from jobs.requests.quotes import Quote
from jobs.results import comparison, delivery, in_comfyui, lora_files
from jobs.services import Services
from jobs.subjects import loras
from jobs.view import JobView
from storage.tables.deletions import DeletionKind
from storage.tables.drawings import OPEN
from storage.tables.jobs import ACTIVE, JobEvent, Status
from training.data.verdict import describe_fault
from training.families.registry import FAMILIES
from web.auth import ServicesDep
from web.files import picture_response
from web.pages import drawings, results
from web.pages.chart import Point, loss_curve
from web.pages.messages import said
from web.pages.question import ask_before_second
from web.pages.render import render
from web.pages.session import PageReaderDep, PageRoute, PageTrainerDep
from web.pages.usage import Usage, usage_of
from web.parameters import FormKey, PreviewName, TrainingId, page_key
from web.streams import event_response

router = APIRouter(prefix="/trainings/{id}", route_class=PageRoute, include_in_schema=False)


@router.get("")
def training(
    request: Request,
    services: ServicesDep,
    caller: PageReaderDep,
    job_id: TrainingId,
    chosen: drawings.ChoiceDep,
) -> Response:
    owner_id = caller.owner_id
    newest = history.newest_event(services, job_id, owner_id)  # read first: what happens meanwhile is sent again
    view = service.get(services, job_id, owner_id)
    active = view.status in ACTIVE
    remedy = remedies.remedy_of(services, view)
    drawn = drawings.list_drawings(services, job_id, owner_id)
    return render(
        request,
        "training.html",
        drawings=drawn,
        drawing_now=any(view.status in OPEN for view in drawn),
        draw_chosen=chosen,
        draw_counts=drawings.COUNTS,
        draw_price=drawings.price(services, view, chosen),
        available=accounts.balance(services, owner_id).available,
        job=view,
        active=active,
        newest=newest,
        stages_done=_stages(view),
        chart=loss_curve(losses_of(service.events(services, job_id, owner_id=owner_id))),
        samples=results.grid_of(view, previews.names(services, job_id, owner_id)),
        forms=lora_files.forms(view.spec.family) if view.lora else [],
        has_workflow=FAMILIES[view.spec.family].workflow is not None,
        comfyui=in_comfyui.state_of(services, job_id) if view.lora else None,
        checkpoints=delivery.choices(services, job_id, owner_id),
        since=_since(services, job_id, owner_id),
        cancel_cost=service.cost_of_cancelling(services, job_id, owner_id) if active else 0,
        again=None if active or remedy else _quote_again(services, job_id, owner_id),
        remedy=remedy,
        waits_because=why_it_waits(services, view) if view.status == Status.PENDING else "",
        key=uuid4().hex,
        advice=ADVICE[view.failure.code] if view.failure else None,
        left_out=_left_out(view),
        usage=_usage(services, view) if view.lora and view.status == Status.READY else [],
        may_train="train" in caller.token.scopes,
        seconds_trained=view.train_seconds,
        deletion=requests.find_open(services, DeletionKind.TRAINING, owner_id, view.subject_id, job_id),
    )


def _stages(view: JobView) -> list[tuple[str, str]]:
    """Each stage with its state: done, now, waiting, or stopped where the training ended early."""
    names = [stage.value for stage in view.stages]
    if view.status == Status.READY:
        return [(name, "done") for name in names]
    at = names.index(view.stage)
    current = "now" if view.status in ACTIVE else "stopped"
    return [(name, "done" if index < at else current if index == at else "waiting") for index, name in enumerate(names)]


def _since(services: Services, job_id: str, owner_id: str) -> comparison.Comparison | None:
    """What differs from the training of the subject before this one."""
    before = comparison.previous(services, job_id, owner_id)
    return comparison.compare(services, before, job_id, owner_id) if before else None


def losses_of(events: Sequence[JobEvent]) -> list[Point]:
    """Loss by step. A step that was repeated after a worker was lost counts with its last loss."""
    progress = [event.data for event in events if event.kind == "progress"]
    losses = {data["step"]: data["loss"] for data in progress if data.get("loss") is not None}
    return sorted((step, loss) for step, loss in losses.items() if math.isfinite(loss))


def _usage(services: Services, view: JobView) -> list[Usage]:
    file = lora_files.find(services, view.job_id, view.owner_id).name
    return usage_of(view, loras.readers_of(services, view.job_id), file)


def _quote_again(services: Services, job_id: str, owner_id: str) -> Quote | None:
    try:
        return service.quote_again(services, job_id, owner_id)
    except SpecInvalid:  # the request was valid once, but is not any more
        return None


def _left_out(view: JobView) -> list[tuple[str, str]]:
    """The pictures that were not used, and why."""
    found = []
    for picture in view.pictures:
        width, height = (picture.report.width or 0, picture.report.height or 0) if picture.report else (0, 0)
        if words := [describe_fault(fault, width, height) for fault in picture.faults]:
            found.append((said(picture.label), "; ".join(map(said, words))))
    return found


# ---- forms ----------------------------------------------------------------------------------------------------


@router.post("/cancel")
def cancel(services: ServicesDep, caller: PageTrainerDep, job_id: TrainingId) -> Response:
    service.cancel(services, job_id, caller.owner_id)
    return RedirectResponse(f"/trainings/{job_id}?notice=cancelled", 303)


@router.post("/review")
def accept_captions(services: ServicesDep, caller: PageTrainerDep, job_id: TrainingId) -> Response:
    review.accept(services, job_id, caller.owner_id)
    return RedirectResponse(f"/trainings/{job_id}?notice=accepted", 303)


@router.post("/delete")
def delete(services: ServicesDep, caller: PageTrainerDep, job_id: TrainingId) -> Response:
    deletion = requests.delete_training(services, job_id, caller.owner_id, services.settings.web_undo_s)
    to = f"/trainings/{job_id}" if deletion.status == "waiting" else "/account"
    return RedirectResponse(f"{to}?notice=deleting", 303)


@router.post("/again")
def again(
    request: Request,
    services: ServicesDep,
    caller: PageTrainerDep,
    job_id: TrainingId,
    key: FormKey,
    beside: Annotated[str, Form(max_length=3)] = "",
) -> Response:
    owner_id = caller.owner_id
    if not beside:
        subject_id = service.get(services, job_id, owner_id).subject_id
        action = f"/trainings/{job_id}/again"
        if question := ask_before_second(request, services, owner_id, subject_id, action, {}, page_key(key)):
            return question
    view = service.retry(services, job_id, owner_id, page_key(key))
    return RedirectResponse(f"/trainings/{view.job_id}?notice=started", 303)


# ---- events and files ------------------------------------------------------------------------------------------


@router.get("/events")
async def events(
    request: Request,
    services: ServicesDep,
    caller: PageReaderDep,
    job_id: TrainingId,
    after: Annotated[int, Query(ge=0, le=2**63 - 1)] = 0,
    last_event_id: Annotated[int | None, Header(alias="Last-Event-ID", ge=0, le=2**63 - 1)] = None,
) -> Response:
    return await event_response(request, services, job_id, caller, last_event_id or after)


@router.get("/previews/{name}")
def preview(services: ServicesDep, caller: PageReaderDep, job_id: TrainingId, name: PreviewName) -> Response:
    return picture_response(previews.get(services, job_id, name, caller.owner_id), name)
