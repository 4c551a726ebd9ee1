"""The stages of a job as Celery tasks, which `tasks.pipeline` chains, and the error callback of each."""

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from celery import Task
from celery.exceptions import Ignore

from core.errors import ImprintError
from jobs.captioning import stage as captioning_stage
from jobs.lifecycle import sweeps
from jobs.services import services
from jobs.stages import preprocessing, steps
from jobs.stages.stage_runner import AlreadyDone, NothingToDo
from jobs.turns import RetryLater
from storage.database import AWAY
from tasks.app import app
from tasks.arguments import OWN_DELAY

log = logging.getLogger(__name__)

_DATABASE_AWAY_S = 5.0
_DATABASE_AWAY_RETRIES = 5


def run(task: "Task[..., Any]", step: Callable[[], object]) -> None:
    """Run `step`. A message with nothing to do ends without an error; after a temporary failure it is sent again later.

    If the step is done already, this is a success: the worker that did it may have died before it sent the message of
    the next step, and this one sends it again. If it was sent before, the next step finds nothing to do.
    """
    try:
        step()
    except AlreadyDone as reason:
        log.info("%s", reason)
    except NothingToDo as reason:
        raise Ignore(str(reason)) from reason
    except RetryLater as again:
        send_again(task, again)
    except AWAY as error:
        _retry(task, _DATABASE_AWAY_S, _DATABASE_AWAY_RETRIES, error)


def send_again(task: "Task[..., Any]", again: RetryLater) -> NoReturn:
    """End this message, and send it again after the delay, as often as it takes.

    The database counts the attempts, so Celery must not. Its None would be the task's own limit, three.
    """
    _retry(task, again.delay_s, sys.maxsize, again, again.arguments)


def _retry(
    task: "Task[..., Any]", delay_s: float, most: int, error: Exception, arguments: Sequence[object] | None = None
) -> NoReturn:
    """The message carries the delay too, beside the time by this machine's clock (`tasks.rabbitmq.consumer`)."""
    headers = {**(task.request.headers or {}), OWN_DELAY: delay_s}
    raise task.retry(args=arguments, countdown=delay_s, max_retries=most, exc=error, headers=headers) from error


@app.task(name="imprint.preprocess", bind=True, ignore_result=False, throws=(ImprintError,))
def preprocess(self: "Task[..., Any]", job_id: str, position: int, *more: int) -> None:
    """Fetch and prepare some pictures of a job, one after the other."""
    try:
        run(self, lambda: preprocessing.preprocess(services(), job_id, position, *more))
    except Ignore:
        return  # the chord counts the tasks of its header: an ignored one would block it


@app.task(name="imprint.caption", bind=True, throws=(ImprintError,))
def caption(self: "Task[..., Any]", job_id: str) -> None:
    """Have captions written for the pictures without one."""
    run(self, lambda: captioning_stage.caption(services(), job_id))


@app.task(name="imprint.dataset", bind=True, throws=(ImprintError,))
def dataset(self: "Task[..., Any]", job_id: str) -> None:
    """Write the manifest of the good pictures."""
    run(self, lambda: steps.dataset(services(), job_id))


@app.task(name="imprint.train", bind=True, throws=(ImprintError,))
def train(self: "Task[..., Any]", job_id: str) -> None:
    """Train the LoRA on this worker."""
    run(self, lambda: steps.train(services(), job_id))


@app.task(name="imprint.upload", bind=True, throws=(ImprintError,))
def upload(self: "Task[..., Any]", job_id: str) -> None:
    """Check the file and put it in its place."""
    run(self, lambda: steps.upload(services(), job_id))


@app.task(name="imprint.settle", bind=True, throws=(ImprintError,))
def settle(self: "Task[..., Any]", job_id: str) -> None:
    """Charge, mark ready, notify."""
    run(self, lambda: steps.settle(services(), job_id))


@app.task(name="imprint.step_failed", bind=True)
def step_failed(self: "Task[..., Any]", job_id: str, message_id: str | None = None) -> None:
    """A step ended with an error. Usually its job has failed already; if the process died, it has not.

    `message_id` is the launch that the step belongs to. Earlier versions did not send it.
    """
    run(self, lambda: sweeps.repair_job(services(), job_id, message_id))
