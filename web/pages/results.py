"""What a training has delivered: its files, its checkpoints, and the samples that it has drawn."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from core.errors import NotFound
from jobs import previews, service
from jobs.results import delivery, in_comfyui, lora_files, model_card
from jobs.view import JobView
from training.lora.formats import FORMATS
from web.auth import ServicesDep
from web.files import card_response, lora_response
from web.pages.render import render
from web.pages.session import PageReaderDep, PageRoute, PageTrainerDep
from web.pages.texts import gettext
from web.parameters import TrainingId

router = APIRouter(prefix="/trainings/{id}", route_class=PageRoute, include_in_schema=False)

_Form = Annotated[str | None, Query(max_length=20, pattern=f"^({'|'.join(FORMATS)})$")]
_Step = Annotated[int, Path(ge=1, le=100_000)]


@router.get("/download")
def download(
    services: ServicesDep,
    caller: PageReaderDep,
    job_id: TrainingId,
    form: _Form = None,
    step: Annotated[int | None, Query(ge=1, le=100_000)] = None,
) -> Response:
    return lora_response(services, lora_files.find(services, job_id, caller.owner_id, step=step, form=form))


@router.get("/card")
def card(services: ServicesDep, caller: PageReaderDep, job_id: TrainingId) -> Response:
    return card_response(*model_card.build(services, job_id, caller.owner_id))


@router.get("/workflow")
def workflow(services: ServicesDep, caller: PageReaderDep, job_id: TrainingId) -> Response:
    """A workflow for ComfyUI with the LoRA in it."""
    found = in_comfyui.workflow_of(services, job_id, caller.owner_id)
    if found is None:
        raise NotFound("there is no workflow for this base model")
    name, nodes = found
    return JSONResponse(nodes, headers={"Content-Disposition": f'attachment; filename="{name}"'})


@router.post("/comfyui")
def send_to_comfyui(services: ServicesDep, caller: PageTrainerDep, job_id: TrainingId) -> Response:
    """Have a worker send the LoRA to the operator's ComfyUI."""
    in_comfyui.ask(services, job_id, caller.owner_id)
    return RedirectResponse(f"/trainings/{job_id}?notice=sending", 303)


@router.post("/checkpoints/{step}/deliver")
def deliver(services: ServicesDep, caller: PageTrainerDep, job_id: TrainingId, step: _Step) -> Response:
    delivery.deliver(services, job_id, step, caller.owner_id)
    return RedirectResponse(f"/trainings/{job_id}?notice=delivered#checkpoints", 303)


# ---- samples ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SampleRow:
    """The samples of one prompt: the name of each, by step."""

    prompt: str
    text: str  # the prompt itself, if it is known
    names: dict[int, str]


@dataclass(frozen=True)
class SampleGrid:
    """All samples of a training: prompts by steps."""

    steps: list[int]
    rows: list[SampleRow]


def grid_of(view: JobView, names: list[str]) -> SampleGrid:
    """The samples with these names."""
    prompts = view.spec.validation.previews
    found = previews.by_prompt(names)
    rows = [SampleRow(number, _text(prompts, number), dict(pictures)) for number, pictures in found.items()]
    return SampleGrid(sorted({step for row in rows for step in row.names}), rows)


def _text(prompts: tuple[str, ...], number: str) -> str:
    at = int(number) if number.isdigit() else len(prompts)
    return prompts[at] if at < len(prompts) else gettext("Prompt %(number)s") % {"number": at + 1}


@router.get("/samples")
def samples(
    request: Request,
    services: ServicesDep,
    caller: PageReaderDep,
    job_id: TrainingId,
    prompt: Annotated[str, Query(max_length=10)] = "",
    step: Annotated[int | None, Query(ge=0, le=2**31)] = None,
    beside: Annotated[int | None, Query(ge=0, le=2**31)] = None,
) -> Response:
    """One sample large, beside another of the same prompt."""
    view = service.get(services, job_id, caller.owner_id)
    grid = grid_of(view, previews.names(services, job_id, caller.owner_id))
    if not grid.rows:
        raise NotFound("this training has no samples")
    row = next((row for row in grid.rows if row.prompt == prompt), grid.rows[0])
    steps = sorted(row.names)
    chosen = step if step in row.names else steps[-1]
    other = beside if beside in row.names else steps[0]
    at = steps.index(chosen)
    return render(
        request, "samples.html", job=view, grid=grid, row=row, steps=steps, step=chosen, beside=other,
        before=steps[at - 1] if at else None, after=steps[at + 1] if at + 1 < len(steps) else None,
    )  # fmt: skip
