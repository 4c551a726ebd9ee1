"""The public tasks of applications: `train_lora`, `lora`, `quote` and others, sent by import or by name."""

from dataclasses import asdict
from typing import Any

from celery import Task
from celery.exceptions import Ignore

from core.errors import SpecInvalid
from jobs import service
from jobs.drawings import drawings
from jobs.requests import quotes
from jobs.services import services
from jobs.subjects import drawing, loras, subject_settings
from jobs.turns import RetryLater
from storage.database import AWAY
from tasks.app import app
from tasks.arguments import CheckedTask, named_arguments
from tasks.drawing_state import DrawingState
from tasks.messages import canvas
from tasks.stages import send_again


class PatientTask(CheckedTask):
    """A task of applications, which waits while the database cannot be used, for half an hour at most."""

    autoretry_for = AWAY
    retry_backoff = 2
    retry_backoff_max = 60
    max_retries = 35


class PublicTask(PatientTask):
    """Its arguments may contain presigned addresses, so logs and events do not show them."""

    Request = "tasks.messages.request:RedactedRequest"
    trail = False  # the result must not list the internal messages that a request causes

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        return super().apply_async(args, kwargs, **{"argsrepr": "()", "kwargsrepr": "{…}"} | options)


@app.task(name="imprint.train_lora", base=PublicTask, bind=True, ignore_result=False)
def train_lora(self: "Task[..., Any]", *given: Any, **arguments: Any) -> dict[str, Any]:
    """Accept a training and start it. Arguments: docs/task.md. The result is the job's public view.

    Fails with SpecInvalid (which names every fault), KeyReused or InsufficientCredits; then nothing is stored. Without
    an idempotency key the message's id is the key: delivered twice, or tried again after an outage, it is one job.
    """
    call = canvas.call_of(self.request, waits=False)
    view = service.submit(services(), _request(self, given, arguments), call=call)
    canvas.leave_to_outbox(self.request)
    return view.to_dict()


@app.task(name="imprint.lora", base=PublicTask, bind=True, ignore_result=False)
def lora(self: "Task[..., Any]", *given: Any, **arguments: Any) -> dict[str, Any]:
    """Start a training as `train_lora` does, and end when it ends: with the view of a ready job, or with an error.

    No worker waits. The result and the callbacks are kept with the job, and the outbox sends them.
    """
    call = canvas.call_of(self.request, waits=True)
    view = service.submit(services(), _request(self, given, arguments), call=call)
    if call is not None:
        raise Ignore(f"{view.job_id} ends this task")
    return view.to_dict()


def _request(task: "Task[..., Any]", given: tuple[Any, ...], arguments: dict[str, Any]) -> dict[str, Any]:
    request = named_arguments(given, arguments)
    if task.request.id and request.get("idempotency_key") is None:
        request["idempotency_key"] = f"task:{task.request.id}"[:200]
    return request


@app.task(name="imprint.quote", base=PublicTask, ignore_result=False)
def quote(*given: Any, **arguments: Any) -> dict[str, Any]:
    """Price and duration of `train_lora` with the same arguments. Starts nothing."""
    return asdict(quotes.quote(services(), named_arguments(given, arguments)))


@app.task(name="imprint.job", base=PatientTask, ignore_result=False)
def job(job_id: str) -> dict[str, Any]:
    """A job's public view."""
    return service.get(services(), job_id).to_dict()


class PrivateResultTask(PublicTask):
    """A public task whose result may contain a presigned address, so the worker does not log it."""

    resultrepr_maxsize = 0


@app.task(name="imprint.resolve", base=PrivateResultTask, ignore_result=False)
def resolve(owner_id: str, subject_id: str, base_model: str | None = None) -> dict[str, Any]:
    """The newest ready LoRA of a subject: trigger word, strength, file, address. Fails with LoraNotReady."""
    return loras.resolve(services(), owner_id, subject_id, base_model).to_dict()


@app.task(name="imprint.generate", base=PrivateResultTask, bind=True, ignore_result=False)
def generate(self: "Task[..., Any]", **arguments: Any) -> Any:
    """Draw with the newest LoRA of a subject. Arguments: docs/use-the-lora.md.

    With a workflow, the operator's ComfyUI draws it, and the result has the pictures. Without one, a worker draws on
    its device: the result is the view of the drawing that was accepted, and `imprint.drawing` says how far it is. A
    message delivered twice draws once. Fails with SpecInvalid, LoraNotReady, WorkflowInvalid or a GeneratorError;
    without a workflow also with InsufficientCredits or TooManyRequests.
    """
    if "workflow" not in arguments:
        return drawings.submit(services(), _request(self, (), arguments)).to_dict()
    drawing.check(arguments)
    # A drawing takes minutes, so it does not run where applications send it: trainings and sweeps need those processes.
    return self.replace(app.signature("imprint.draw", kwargs=arguments))


@app.task(name="imprint.draw", base=PrivateResultTask, bind=True, ignore_result=False)
def draw(self: "Task[..., Any]", **arguments: Any) -> dict[str, Any]:
    """Do what `imprint.generate` was asked for, under the same id."""
    try:
        done = drawing.generate(services(), arguments, key=str(self.request.id), report=DrawingState(self).report)
        return done.to_dict()
    except RetryLater as again:
        send_again(self, again)


@app.task(name="imprint.drawing", base=PatientTask, ignore_result=False)
def drawing_of(drawing_id: str) -> dict[str, Any]:
    """The public view of a drawing that a worker draws."""
    return drawings.get(services(), drawing_id).to_dict()


@app.task(name="imprint.cancel_drawing", ignore_result=False)
def cancel_drawing(task_id: str | None = None, drawing_id: str | None = None) -> dict[str, Any]:
    """Cancel a drawing: of a worker by its `drawing_id`, of ComfyUI by the `task_id` of its `imprint.generate`.

    Of a worker, the result is its view: the steps done are charged. Of ComfyUI, one that waits never starts, and one
    that is drawn fails; `cancelled` is false if ComfyUI does not draw it at this moment. Fails with a GeneratorError.
    """
    if (task_id is None) == (drawing_id is None):
        raise SpecInvalid.of({"drawing_id": "name either the drawing or the task"})
    if drawing_id is not None:
        return drawings.cancel(services(), drawing_id).to_dict()
    app.control.revoke(task_id)  # unless it runs; a worker's thread or process is never killed
    return {"cancelled": drawing.cancel(services(), str(task_id))}


@app.task(name="imprint.cancel", base=PatientTask, ignore_result=False)
def cancel(job_id: str) -> dict[str, Any]:
    """Cancel a job. The steps done are charged, and the rest of its hold is released at once."""
    return service.cancel(services(), job_id).to_dict()


@app.task(name="imprint.profile_set_completed", base=PatientTask, ignore_result=False)
def profile_set_completed(owner_id: str, subject_id: str, idempotency_key: str | None = None) -> dict[str, Any]:
    """A subject has all its pictures: start a training if the subject trains automatically and can be trained.

    The result says whether a training was started, and which, or why not. Calling it twice for the same pictures, or
    with the same key, starts one training.
    """
    return subject_settings.profile_set_completed(services(), owner_id, subject_id, idempotency_key).to_dict()
