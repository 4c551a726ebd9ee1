"""One job: its history, errors and remote runs; it can be cancelled, repeated and refunded."""

from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from jobs import service
from jobs.owners import accounts, search
from web.auth import ServicesDep
from web.pages.render import render
from web.pages.session import PageOperatorDep, PageRoute
from web.parameters import FormKey, TrainingId, page_key

router = APIRouter(prefix="/operators", route_class=PageRoute, include_in_schema=False)


@router.get("/jobs/{id}")
def job(request: Request, services: ServicesDep, _: PageOperatorDep, job_id: TrainingId) -> Response:
    return render(request, "operators/job.html", found=search.job_history(services, job_id), key=uuid4().hex)


@router.post("/jobs/{id}/cancel")
def cancel(services: ServicesDep, _: PageOperatorDep, job_id: TrainingId) -> Response:
    service.cancel(services, job_id)
    return _to_job(job_id, "cancelled")


@router.post("/jobs/{id}/retry")
def retry(services: ServicesDep, _: PageOperatorDep, job_id: TrainingId, key: FormKey) -> Response:
    view = service.retry(services, job_id, None, page_key(key))
    return _to_job(view.job_id, "started")


@router.post("/jobs/{id}/refund")
def refund(
    services: ServicesDep, _: PageOperatorDep, job_id: TrainingId, key: FormKey,
    amount: Annotated[int, Form(ge=1, le=2**53)],
) -> Response:  # fmt: skip
    accounts.refund(services, job_id, amount, page_key(key))
    return _to_job(job_id, "refunded")


def _to_job(job_id: str, notice: str) -> Response:
    return RedirectResponse(f"/operators/jobs/{job_id}?notice={notice}", 303)
