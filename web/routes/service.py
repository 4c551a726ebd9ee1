"""Whether the service lives, whether it can work, and its numbers."""

import threading
import time
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel
from sqlalchemy import text

from core.errors import StoreUnavailable
from jobs.services import Services
from storage.database import AWAY
from tasks.relay import broker_answers
from web.auth import OperatorDep, ServicesDep
from web.metrics import WebMetrics
from web.problems import responses

router = APIRouter(tags=["service"])

_KEPT_S = 2.0  # anybody may ask, and asking costs a round trip to each server


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """What the service needs, each `ok` or `away`."""

    status: Literal["ok", "away"]
    database: Literal["ok", "away"]
    store: Literal["ok", "away"]
    broker: Literal["ok", "away"]


class Readiness:
    """The answer of `/readyz`, asked anew at most every two seconds."""

    def __init__(self) -> None:
        self._lock, self._until = threading.Lock(), 0.0
        self._kept: Ready | None = None

    def look(self, services: Services) -> Ready:
        with self._lock:
            if self._kept is None or time.monotonic() >= self._until:
                self._kept = _look(services)
                self._until = time.monotonic() + _KEPT_S
            return self._kept


def _look(services: Services) -> Ready:
    parts = {"database": _database(services), "store": _store(services), "broker": broker_answers()}
    told: dict[str, Literal["ok", "away"]] = {name: "ok" if well else "away" for name, well in parts.items()}
    return Ready(status="ok" if all(parts.values()) else "away", **told)


def _database(services: Services) -> bool:
    try:
        with services.database.reading() as session:
            session.connection().execute(text("SELECT 1"))
    except AWAY:
        return False
    return True


def _store(services: Services) -> bool:
    try:
        services.store.exists("readyz")
    except StoreUnavailable:
        return False
    return True


@router.get("/healthz", summary="Does the process answer?")
async def healthz() -> Alive:
    return Alive()


@router.get(
    "/readyz", summary="Can it work? 503 if database, store or broker is away.", responses={503: {"model": Ready}}
)
def readyz(request: Request, services: ServicesDep, response: Response) -> Ready:
    readiness: Readiness = request.app.state.readiness
    found = readiness.look(services)
    if found.status != "ok":
        response.status_code = 503
    return found


def _web_metrics(request: Request) -> WebMetrics:
    metrics: WebMetrics = request.app.state.metrics
    return metrics


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    response_class=PlainTextResponse,
    responses=responses("unauthorized", "forbidden", "rate_limited", "unavailable"),
)
def metrics(_: OperatorDep, web_metrics: Annotated[WebMetrics, Depends(_web_metrics)]) -> Response:
    return Response(web_metrics.text(), media_type="text/plain; version=1.0.0; charset=utf-8")
