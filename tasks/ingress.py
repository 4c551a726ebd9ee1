"""The door for applications: `train_lora`, by import or by name, and the price without starting anything."""

from dataclasses import asdict
from typing import Any

from celery import Task

from jobs import service
from jobs.services import services
from jobs.subjects import drawing, loras, subject_settings
from jobs.view import View
from tasks.app import app
from tasks.arguments import CheckedTask


class PublicTask(CheckedTask):
    """A task whose arguments come from outside and may hold presigned addresses: nobody else sees them."""

    Request = "tasks.request:RedactedRequest"
    trail = False  # the messages that a request causes are ours; they do not travel to the application with its result

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        return super().apply_async(args, kwargs, **{"argsrepr": "()", "kwargsrepr": "{…}"} | options)


@app.task(name="imprint.train_lora", base=PublicTask, ignore_result=False)
def train_lora(**arguments: Any) -> View:
    """Accept a training and start it. Arguments: docs/task.md. The result is the job's public view.

    Fails with SpecInvalid (every fault named), KeyReused or InsufficientCredits; then nothing is stored.
    """
    return service.submit(services(), arguments)


@app.task(name="imprint.quote", base=PublicTask, ignore_result=False)
def quote(**arguments: Any) -> dict[str, Any]:
    """Price and time of what `train_lora` would do with the same arguments; starts nothing."""
    return asdict(service.quote(services(), arguments))


@app.task(name="imprint.job", ignore_result=False)
def job(job_id: str) -> View:
    """A job's public view."""
    return service.get(services(), job_id)


class PrivateResultTask(PublicTask):
    """A task whose result may hold a presigned address: the worker's log does not show that either."""

    resultrepr_maxsize = 0


@app.task(name="imprint.resolve", base=PrivateResultTask, ignore_result=False)
def resolve(owner_id: str, subject_id: str, base_model: str | None = None) -> dict[str, Any]:
    """The newest ready LoRA of a subject: trigger word, strength, file, address. Fails with LoraNotReady."""
    return loras.resolve(services(), owner_id, subject_id, base_model)


@app.task(name="imprint.generate", base=PrivateResultTask, bind=True, ignore_result=False)
def generate(self: "Task[..., Any]", **arguments: Any) -> dict[str, Any]:
    """Draw with the newest LoRA of a subject on the operator's ComfyUI. Arguments: docs/use-the-lora.md.

    A message that comes twice draws once. Fails with SpecInvalid, LoraNotReady, WorkflowInvalid or a GeneratorError.
    """
    return drawing.generate(services(), arguments, key=str(self.request.id))


@app.task(name="imprint.cancel", ignore_result=False)
def cancel(job_id: str) -> View:
    """Cancel a job; the steps done are charged, and the rest of its hold is released at once."""
    return service.cancel(services(), job_id)


@app.task(name="imprint.profile_set_completed", ignore_result=False)
def profile_set_completed(owner_id: str, subject_id: str) -> dict[str, Any]:
    """A subject has all its pictures: train it, if it trains automatically and nothing stands in the way.

    The result says whether a training was started, which, and if not, why not. Said twice, it starts one.
    """
    return asdict(subject_settings.profile_set_completed(services(), owner_id, subject_id))
