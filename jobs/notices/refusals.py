"""Notices about messages that became no job."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from jobs.requests import acceptance, installation
from jobs.requests.envelope import Envelope, Origin
from jobs.services import Services
from notifications import webhooks
from notifications.webhook_payload import NoticeFailure, NoticeJob

_NAMES = ("owner_id", "subject_id", "model_id", "reference", "webhook_url")
_FIELDS: dict[str, TypeAdapter[Any]] = {name: TypeAdapter(Envelope.__annotations__[name]) for name in _NAMES}


def queue_refused_notice(
    services: Services, arguments: Mapping[str, Any], origin: Origin, failure: NoticeFailure
) -> bool:
    """Queue a notice `training.refused` with every fault; False if the message does not say where it could go.

    It goes to the model that the message names, unless another training has that id, or else to the subject.
    """
    known = {name: value for name in _NAMES if (value := _usable(name, arguments.get(name))) is not None}
    url = known.pop("webhook_url", None)
    if url is None or installation.webhook_fault(url, services.sources):
        return False
    with services.database.writing() as session:
        if acceptance.is_model_id_taken(session, known.get("model_id")):
            del known["model_id"]
        if not known.keys() & {"model_id", "subject_id"}:
            return False
        about = NoticeJob(**known, style_id=origin.style_id, message_id=origin.message_id, failure=failure)
        webhooks.put(session, about, "training.refused", url)
    return True


def _usable(name: str, value: Any) -> Any:
    """The value of a field of a request that may have faults elsewhere; None if this one is faulty."""
    try:
        return _FIELDS[name].validate_python(value)
    except ValidationError:
        return None
