"""Liveness, readiness and metrics of the service."""

import threading
import time
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

from core.clock import utcnow
from core.errors import StoreUnavailable
from jobs.lifecycle import sweeps
from jobs.services import Services
from storage.database import AWAY
from tasks.relay import broker_answers
from web.auth import OperatorDep, ServicesDep
from web.metrics import WebMetrics
from web.problems import responses

router = APIRouter(tags=["service"])

_CACHE_S = 2.0  # the route needs no token, and each check costs a round trip to each server


class Alive(BaseModel):
    """The process runs."""

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """The state of the service, of each server that it needs, and of its sweeps."""

    status: Literal["ok", "away"]
    database: Literal["ok", "away"]
    store: Literal["ok", "away"]
    broker: Literal["ok", "away"]
    sweeps: Literal["ok", "late"] = Field(description="`late` if the last sweep is older than three periods.")


class Readiness:
    """The answer of `/readyz`, at most two seconds old."""

    def __init__(self) -> None:
        self._lock, self._until = threading.Lock(), 0.0
        self._begun = utcnow()
        self._cached: Ready | None = None

    def check(self, services: Services) -> Ready:
        with self._lock:
            if self._cached is None or time.monotonic() >= self._until:
                self._cached = _check(services, self._begun)
                self._until = time.monotonic() + _CACHE_S
            return self._cached


def _check(services: Services, begun: datetime) -> Ready:
    answers = {"database": _database(services), "store": _store(services), "broker": broker_answers()}
    states: dict[str, Literal["ok", "away"]] = {name: "ok" if is_ok else "away" for name, is_ok in answers.items()}
    late = answers["database"] and _sweeps_are_late(services, begun)
    is_ok = all(answers.values()) and not late
    return Ready(status="ok" if is_ok else "away", sweeps="late" if late else "ok", **states)


def _sweeps_are_late(services: Services, begun: datetime) -> bool:
    try:
        with services.database.reading() as session:
            return sweeps.is_late(session, services.settings, begun)
    except AWAY:
        return False  # the next check says that the database is away


def _database(services: Services) -> bool:
    try:
        services.database.check_writable()
    except AWAY:
        return False
    return True


def _store(services: Services) -> bool:
    try:
        services.store.exists("readyz")
    except StoreUnavailable:
        return False
    return True


@router.get("/healthz", summary="Check that the process runs")
async def healthz() -> Alive:
    return Alive()


@router.get(
    "/readyz",
    summary="Check database, store, broker and sweeps; 503 if one does not answer, or sweeps are late",
    description="503 also if the database takes no writes. The API works without sweeps, and jobs wait for them. So a "
    "load balancer asks with `sweeps=false`.",
    responses={503: {"model": Ready}, **responses("spec_invalid")},
)
def readyz(
    request: Request,
    services: ServicesDep,
    response: Response,
    count_sweeps: Annotated[bool, Query(alias="sweeps", description="Whether late sweeps are an error.")] = True,
) -> Ready:
    readiness: Readiness = request.app.state.readiness
    found = readiness.check(services)
    if not count_sweeps and found.sweeps == "late":
        servers = (found.database, found.store, found.broker)
        found = found.model_copy(update={"status": "ok" if all(state == "ok" for state in servers) else "away"})
    if found.status != "ok":
        response.status_code = 503
    return found


def _web_metrics(request: Request) -> WebMetrics:
    metrics: WebMetrics = request.app.state.metrics
    return metrics


@router.get(
    "/metrics",
    summary="Get metrics for Prometheus",
    response_class=PlainTextResponse,
    responses=responses("unauthorized", "forbidden", "rate_limited", "unavailable"),
)
def metrics(_: OperatorDep, web_metrics: Annotated[WebMetrics, Depends(_web_metrics)]) -> Response:
    return Response(web_metrics.text(), media_type="text/plain; version=1.0.0; charset=utf-8")
