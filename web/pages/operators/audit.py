"""The whole audit log, with filters, page by page and as CSV."""

from datetime import UTC, datetime, timedelta
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from core.errors import SpecInvalid
from jobs.owners import audit_log
from jobs.owners.audit_log import AuditFilter
from web.auth import ServicesDep
from web.pages.render import render
from web.pages.session import PageOperatorDep, PageRoute

router = APIRouter(prefix="/operators", route_class=PageRoute, include_in_schema=False)

_PAGE = 50  # entries
_Text = Annotated[str, Query(max_length=300)]
_Day = Annotated[str, Query(max_length=10)]


def filled_in(
    actor: _Text = "", action: _Text = "", owner: _Text = "", subject: _Text = "", training: _Text = "",
    since: _Day = "", until: _Day = "",
) -> dict[str, str]:  # fmt: skip
    """A dependency: the fields of the filter that are filled in."""
    fields = {
        "actor": actor, "action": action, "owner": owner, "subject": subject, "training": training, "since": since,
        "until": until,
    }  # fmt: skip
    return {name: value.strip() for name, value in fields.items() if value.strip()}


Filled = Annotated[dict[str, str], Depends(filled_in)]


def _filter(filled: dict[str, str]) -> AuditFilter:
    """The filter. `until` is the last day, in full. Raises SpecInvalid for what is no day."""
    days: dict[str, datetime] = {}
    for name in ("since", "until"):
        if name in filled:
            try:
                days[name] = datetime.strptime(filled[name], "%Y-%m-%d").replace(tzinfo=UTC)
            except ValueError:
                raise SpecInvalid.of({name: "must be a day such as 2026-11-29"}) from None
    last = days.get("until")
    return AuditFilter(
        job_id=filled.get("training"),
        owner_id=filled.get("owner"),
        subject_id=filled.get("subject"),
        actor=filled.get("actor"),
        action=filled.get("action"),
        since=days.get("since"),
        until=last + timedelta(days=1) if last is not None and last.year < 9999 else None,
    )


@router.get("/audit")
def audit(
    request: Request,
    services: ServicesDep,
    _: PageOperatorDep,
    filled: Filled,
    before: Annotated[str | None, Query(max_length=100, pattern=r"^[a-z0-9_]+$")] = None,
) -> Response:
    found = audit_log.find(services, _filter(filled), _PAGE + 1, before)
    shown = found[:_PAGE]
    return render(
        request,
        "operators/audit.html",
        log=shown,
        filled=filled,
        actions=audit_log.ACTIONS,
        asked=urlencode(filled),
        is_first=before is None,
        older=urlencode({**filled, "before": shown[-1].id}) if len(found) > _PAGE else "",
    )


@router.get("/audit.csv")
def audit_csv(services: ServicesDep, _: PageOperatorDep, filled: Filled) -> Response:
    headers = {"Content-Disposition": 'attachment; filename="imprint-audit.csv"'}
    lines = audit_log.csv_lines(services, _filter(filled))
    return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)
