"""The question before a second training of a subject starts while one runs: both would be paid for."""

from collections.abc import Mapping
from uuid import uuid4

from fastapi import Request, Response

from jobs import service
from jobs.services import Services
from web.pages.render import render


def ask_before_second(
    request: Request,
    services: Services,
    owner_id: str,
    subject_id: str,
    action: str,
    fields: Mapping[str, object],
    key: str | None = None,
) -> Response | None:
    """The page that asks, if a training of the subject is active, and none was started with `key`.

    Its form sends `fields` to `action` again with `beside`, and with a new key: the first may have started a training.
    """
    running = service.jobs(services, owner_id=owner_id, subject_id=subject_id, active=True, limit=1)
    # The key second: the same form, sent at the same time, may have started the training that is running.
    if not running or (key is not None and service.find_started(services, owner_id, key)):
        return None
    sent = {**{name: value for name, value in fields.items() if value is not None}, "key": uuid4().hex, "beside": "yes"}
    return render(request, "second.html", 409, subject_id=subject_id, running=running[0], action=action, fields=sent)
