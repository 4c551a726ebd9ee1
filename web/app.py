"""The FastAPI application of the HTTP API and the page."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute

from jobs.services import Services
from web import problems
from web.metrics import WebMetrics
from web.pages import account as account_page
from web.pages import captions as caption_pages
from web.pages import compare as compare_pages
from web.pages import drawings as drawing_pages
from web.pages import errors, training_list
from web.pages import oidc as oidc_pages
from web.pages import operators as operator_pages
from web.pages import picture as picture_pages
from web.pages import recipe as recipe_pages
from web.pages import results as result_pages
from web.pages import subjects as subject_pages
from web.pages import trainings as training_pages
from web.routes import account, captions, deletions, drawings, images, pages, service, subjects, trainings, turns
from web.server.bodies import BodyLimits
from web.server.limits import RateLimit
from web.server.request_middleware import RequestMiddleware
from web.signing import secret
from web.streams import Streams
from web.uploads import MAX_BODY_BYTES, Uploads, max_upload_bytes

# What pages of other origins may send and see (CORS). Their calls carry a token, never the page's cookie.
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_REQUEST_HEADERS = (
    "Authorization", "Content-Type", "Idempotency-Key", "Imprint-Owner", "Last-Event-ID", "X-Request-Id",
)  # fmt: skip
_RESPONSE_HEADERS = ("Location", "Retry-After", "X-Request-Id")

_DESCRIPTION = """
Train LoRAs: upload pictures of a subject, start a training, follow it, download the file, draw with it.

Every call needs a bearer token. Errors are problem documents (RFC 9457). Starting a training takes an
`Idempotency-Key`: the same key with the same request returns the same training.
"""


def create_app(services: Services) -> FastAPI:
    """The app over `services`."""
    streams = Streams(services)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        streams.start()
        try:
            yield
        finally:
            await streams.stop()

    app = FastAPI(
        title="Imprint",
        version="0.1.0",
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load scripts from other hosts
        redoc_url=None,
        separate_input_output_schemas=False,
        routes=_routes(),
    )
    app.state.services = services
    app.state.rate_limit = RateLimit(services.settings.web_rate_per_s)
    app.state.metrics = metrics = WebMetrics(services)
    app.state.readiness = service.Readiness()
    app.state.streams = streams
    app.state.uploads = Uploads(services.settings)
    app.state.secret = secret(services.settings)
    app.state.oidc = oidc_pages.provider_of(services)
    bodies = BodyLimits(
        max_upload_bytes(services.settings),
        MAX_BODY_BYTES,
        services.settings.upload_timeout_s,
        services.settings.upload_min_bytes_per_s,
    )
    app.add_middleware(RequestMiddleware, bodies=bodies, observe=metrics.observe)
    if services.settings.web_cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=services.settings.web_cors_origins,
            allow_methods=_METHODS,
            allow_headers=_REQUEST_HEADERS,
            expose_headers=_RESPONSE_HEADERS,
        )
    problems.install(app)
    app.add_exception_handler(HTTPException, errors.as_asked)  # an address that no route has
    return app


@cache
def _routes() -> list[BaseRoute]:
    """All routes, shared by the apps of this process.

    At the first request FastAPI works out the parameters of every route, for half a second, and keeps that with it.
    """
    router = APIRouter()
    for routes in (
        subjects,
        images,
        captions,
        trainings,
        drawings,
        account,
        deletions,
        turns,
        service,
        pages,
        account_page,
        oidc_pages,
        operator_pages,
        subject_pages,
        training_list,
        training_pages,
        result_pages,
        compare_pages,
        drawing_pages,
        caption_pages,
        picture_pages,
        recipe_pages,
    ):
        router.include_router(routes.router)
    return router.routes
