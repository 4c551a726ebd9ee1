"""The question before a second training of a subject starts while one runs: both would be paid for."""

from collections.abc import Mapping
from uuid import uuid4

from fastapi import Request, Response

from jobs import service
from jobs.services import Services
from web.pages.render import render


def ask_before_second(
    request: Request, services: Services, owner_id: str, subject_id: str, action: str, fields: Mapping[str, object]
) -> Response | None:
    """The page that asks, if a training of the subject is active.

    Its form sends `fields` to `action` again with `beside`, and with a new key: the first may have started a training.
    """
    running = service.jobs(services, owner_id=owner_id, subject_id=subject_id, active=True, limit=1)
    if not running:
        return None
    sent = {**{name: value for name, value in fields.items() if value is not None}, "key": uuid4().hex, "beside": "yes"}
    return render(request, "second.html", 409, subject_id=subject_id, running=running[0], action=action, fields=sent)
