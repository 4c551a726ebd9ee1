"""An application with its own Celery app, queue and worker, on the broker of Imprint. It has none of Imprint's code.

    celery -A shop worker -Q shop

Each task writes what it got into a journal. A real application would write to its database.
"""

import json
import os
from pathlib import Path
from typing import Any

from celery import Celery, Signature, signature

QUEUE = "shop"

app = Celery("shop", broker=os.environ["SHOP_BROKER_URL"], backend=os.environ["SHOP_RESULT_URL"])
app.conf.task_default_queue = QUEUE
# A worker that dies with a task loses it, unless the task is acknowledged late.
app.conf.task_acks_late = True
app.conf.worker_prefetch_multiplier = 1
app.conf.broker_connection_retry_on_startup = True
app.conf.broker_transport_options = {"visibility_timeout": int(os.environ.get("SHOP_VISIBILITY_TIMEOUT_S", "3600"))}


def lora(**request: Any) -> Signature:
    """The task that ends when the training ends."""
    return signature("imprint.lora", kwargs=request, queue="io", immutable=True, app=app)


def train_lora(**request: Any) -> Signature:
    """The task that ends when the training is accepted."""
    return signature("imprint.train_lora", kwargs=request, queue="io", immutable=True, app=app)


def on_shop(task: Signature) -> Signature:
    """A callback for the workers of this application. Imprint's workers send it, and do not know our default queue."""
    return task.set(queue=QUEUE)


@app.task
def upload_pictures(order: str) -> str:
    """What the application does before the training."""
    _write("upload_pictures", order=order)
    return order


@app.task
def use_lora(view: dict[str, Any], order: str = "") -> str:
    """What the application does with the view of the job."""
    _write("use_lora", order=order, **_part(view))
    return str(view["job_id"])


@app.task
def after_all(job_ids: list[Any], order: str = "") -> int:
    """What the application does when several trainings have ended."""
    _write("after_all", order=order, jobs=[one["job_id"] if isinstance(one, dict) else one for one in job_ids])
    return len(job_ids)


@app.task
def failed(request: Any, exc: BaseException, traceback: Any, order: str = "") -> None:
    """An error callback that Celery calls with request, exception and traceback."""
    # Where Celery itself calls it, as for the body of a chord, there are no such headers.
    failure = (request.headers or {}).get("imprint", {"type": type(exc).__name__})
    _write("failed", order=order, task_id=request.id, error=str(exc), kind=failure["type"], code=failure.get("code"))


@app.task
def failed_by_id(task_id: str, order: str = "") -> None:
    """An error callback of the older kind. The error is the result of the task."""
    error = app.AsyncResult(task_id).result
    details = error.args[1] if len(error.args) > 1 else {}
    _write("failed_by_id", order=order, task_id=task_id, kind=type(error).__name__, code=details.get("code"))


@app.task
def notice(view: dict[str, Any], order: str = "") -> None:
    """The task that `on_end` of a request names."""
    _write("notice", order=order, **_part(view))


@app.task
def screen(picture: dict[str, Any]) -> dict[str, str]:
    """The task of `IMPRINT_SCREEN_TASK`: it sees each new picture. A real one would look at `picture["url"]`."""
    owner = picture["owner_id"]
    _write("screen", order=owner, sha256=picture["sha256"], url=picture["url"])
    if owner.startswith("doubtful"):
        return {"verdict": "hold", "reason": "a person should look at this"}
    if owner.startswith("blocked"):
        return {"verdict": "refuse", "reason": "this owner is blocked"}
    return {"verdict": "accept"}


@app.task
def caption(picture: dict[str, Any]) -> dict[str, str]:
    """The task of `IMPRINT_CAPTION_TASK`. A real one would show `picture["url"]` and the instruction to a model."""
    _write("caption", order=picture["owner_id"], instruction=picture["instruction"])
    return {"caption": f"{picture['trigger_word']} {picture['class_word']} on a wall"}


def _part(view: dict[str, Any]) -> dict[str, Any]:
    return {name: view[name] for name in ("job_id", "subject_id", "status")}


def _write(task: str, **facts: Any) -> None:
    line = json.dumps({"task": task, **facts}) + "\n"
    with Path(os.environ["SHOP_JOURNAL"]).open("a", encoding="utf-8") as journal:
        journal.write(line)
