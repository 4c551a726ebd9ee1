"""A training's LoRA in ComfyUI: a workflow with it, and the operator's server, to which a worker sends the file."""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlmodel import col, select

from core.clock import utcnow
from core.errors import IllegalMove, ImprintError, NotFound
from generation.comfyui.patch import WorkflowLora
from jobs import service
from jobs.lifecycle import launches
from jobs.owners import audit_log
from jobs.results import lora_files
from jobs.results.starter_workflow import Start, starter_workflow
from jobs.services import Services
from jobs.subjects import loras
from jobs.subjects.comfyui_drawing import comfyui_target, send_to_comfyui
from jobs.subjects.drawing import drawing_defaults
from jobs.subjects.lora_weights import stored_weights
from jobs.turns import owner_slot
from notifications import outbox
from storage.tables.jobs import JobEvent
from training.families.registry import FAMILIES
from training.spec import base_model_location, is_distilled

log = logging.getLogger(__name__)

TOPIC = "comfyui"  # of the messages that ask a worker to send a file
_EVENT = "comfyui"
_PATIENCE = timedelta(minutes=5)  # after that, the worker that was asked has been lost


@dataclass(frozen=True)
class Sent:
    """Whether the file of a training is on the operator's server. `file`: the name by which the server lists it."""

    state: Literal["never", "asked", "sent", "failed"]
    at: datetime | None = None
    file: str = ""


def state_of(services: Services, job_id: str) -> Sent | None:
    """What became of the newest request to send the file; None without a server."""
    if services.settings.comfyui_url is None:
        return None
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.kind == _EVENT)
    with services.database.reading() as session:
        event = session.exec(query.order_by(col(JobEvent.id).desc()).limit(1)).first()
        lora = service.get_job(session, job_id, None).lora_key
    if event is None or event.data["lora"] != lora:  # another checkpoint was delivered since
        return Sent("never")
    is_lost = event.data["state"] == "asked" and event.at < utcnow() - _PATIENCE
    return Sent("failed" if is_lost else event.data["state"], event.at, event.data.get("file", ""))


def ask(services: Services, job_id: str, owner_id: str) -> None:
    """Have a worker send the file of a ready training. Asked again meanwhile, nothing changes.

    Raises NotFound as `service.get_job` does, LoraNotReady, and IllegalMove without a server.
    """
    service.get(services, job_id, owner_id)
    if (state := state_of(services, job_id)) is None:
        raise IllegalMove("this service has no ComfyUI server")
    found = loras.of_training(services, job_id, owner_id)
    if state.state == "asked":
        return
    with services.database.writing() as session:
        launches.record_event(session, job_id, _EVENT, state="asked", lora=found.key)
        audit_log.record(session, "lora.sent", job_id=job_id, owner_id=owner_id)
        outbox.put(session, "launch", job_id=None, topic=TOPIC, owner_id=owner_id, payload={"training": job_id})


def deliver(services: Services, job_id: str) -> None:
    """Send the file. Twice changes nothing. Raises RetryLater if the owner's other work takes its share."""
    try:
        job = service.get(services, job_id)
    except NotFound:  # deleted meanwhile
        return
    with owner_slot(services, job.owner_id):
        found = loras.of_training(services, job_id)
        try:
            with stored_weights(services, found) as weights:
                outcome = {"state": "sent", "file": send_to_comfyui(comfyui_target(services), weights)}
        except ImprintError as error:
            log.warning("the LoRA of %s was not sent to ComfyUI: %s", job_id, error.message)
            outcome = {"state": "failed", "code": str(error.code)}
    with services.database.writing() as session:
        launches.record_event(session, job_id, _EVENT, lora=found.key, **outcome)


def workflow_of(services: Services, job_id: str, owner_id: str) -> tuple[str, dict[str, Any]] | None:
    """A workflow that draws with the LoRA of a ready training, and its file name; None for a family without one.

    It names the file as the server lists it, or else as the page downloads it. Raises NotFound as `service.get_job`
    does, and IllegalMove for a training without a file.
    """
    download = lora_files.find(services, job_id, owner_id)
    spec, sent = service.get(services, job_id, owner_id).spec, state_of(services, job_id)
    usual = drawing_defaults(
        spec.family, spec.base_model, base_model_location(spec.base_model, services.settings.base_models)
    )
    prompt = " ".join(filter(None, ("a photo of", spec.trigger_word, spec.class_word)))
    start = Start(prompt, spec.resolution, usual.steps, usual.guidance)
    file = (sent.file if sent else "") or download.name
    lora = WorkflowLora(file, spec.trigger_word, has_text_encoders=spec.adapter.text_encoder)
    model = FAMILIES[spec.family].workflow
    if model is None:
        return None
    made = starter_workflow(model, start, lora, is_few_step=is_distilled(spec.base_model))
    return f"{download.name.removesuffix('.safetensors')}-workflow.json", made
