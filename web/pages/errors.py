"""Errors as pages: what happened, and where to go from there."""

from collections.abc import Mapping

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response

from web.pages.messages import said
from web.pages.render import render
from web.pages.texts import gettext
from web.pages.wording import sentence
from web.problems import PROBLEMS, RequestRefused, answer, refusal

# The titles of problems are about requests; these are about what a person did.
TITLES = {
    "spec_invalid": "Please check what you entered",
    "bad_request": "This cannot be understood",
    "illegal_move": "Not possible now",
    "method_not_allowed": "Not found",
    "unavailable": "The service does not answer right now",
}
_NOT_HERE = "There is nothing at this address, or it belongs to another owner."
DETAILS = {
    "spec_invalid": "Nothing was changed.",
    "not_found": _NOT_HERE,
    "method_not_allowed": _NOT_HERE,
}


def wants_page(request: Request) -> bool:
    """Whether a browser asks for something to show, and not for data."""
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/")


def error_page(request: Request, error: Exception) -> HTMLResponse:
    """The page for an expected error."""
    refused = refusal(error)
    if isinstance(error, RequestValidationError) and _is_unknown_id(request, error):
        refused = RequestRefused("not_found", _NOT_HERE)
    status, title = PROBLEMS[refused.code]
    detail, faults = said(DETAILS.get(refused.code, refused.detail)), refused.faults
    if refused.code == "spec_invalid" and not faults:
        detail = said(refused.detail)
    title = gettext(TITLES.get(refused.code, title))
    page = render(request, "error.html", status, title=title, detail=detail, faults=faults)
    page.headers.update(refused.headers)
    return page


def _is_unknown_id(request: Request, error: RequestValidationError) -> bool:
    """Whether an id in the address can be none. A subject's name has rules that a person can know."""
    return all(fault["loc"][0] == "path" for fault in error.errors()) and "/subjects/" not in request.url.path


def as_asked(request: Request, error: Exception) -> Response:
    """A page for a browser, a problem for a program."""
    if wants_page(request):
        return error_page(request, error)
    refused = refusal(error)
    detail, faults = refused.detail, refused.faults
    if not request.url.path.startswith("/api/"):  # for a script of the page, which shows them
        detail, faults = said(detail), {name: sentence(fault) for name, fault in faults.items()}
    return answer(request, refused.code, detail, faults=faults, headers=refused.headers)


def refused_early(request: Request, code: str, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a request that no route has seen."""
    return as_asked(request, RequestRefused(code, detail, headers))
