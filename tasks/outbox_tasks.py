"""The tasks that `tasks.relay` sends for messages of the outbox, and those that applications answer with."""

from typing import Any

from celery import Task

from jobs import screening
from jobs.captioning import asking
from jobs.deletion.run import run as run_deletion
from jobs.notices import notices, outbox_handlers
from jobs.services import services
from jobs.subjects import image_fetches
from tasks.app import app
from tasks.messages.canvas import CelerySender, forget_results, send_caption_task, send_screen_task
from tasks.stages import run


@app.task(name="imprint.clean_up")
def clean_up(job_id: str, message_id: str) -> None:
    """Delete what a finished job no longer needs."""
    outbox_handlers.clean_up(services(), job_id, message_id)


@app.task(name="imprint.notify", bind=True)
def notify(self: "Task[..., Any]", job_id: str | None, message_id: str) -> None:
    """Send a webhook. After a failed attempt it is due again by its schedule, and the sweep sends it."""
    run(self, lambda: outbox_handlers.notify(services(), message_id))


@app.task(name="imprint.send_callback", bind=True)
def send_callback(self: "Task[..., Any]", message_id: str) -> None:
    """Store the result of an application's task, or send one of its callbacks or the task of `on_end`."""
    run(self, lambda: outbox_handlers.send_callback(services(), message_id, CelerySender()))


@app.task(name="imprint.callback_ended", bind=True)
def callback_ended(self: "Task[..., Any]", message_id: str) -> None:
    """An application's worker says that it has ended a callback: Celery sends this as a callback of the callback."""
    if self.request.group_index:
        # Sent beside an error callback that takes a task id, which runs as a task of its own and sends this at its end.
        return
    run(self, lambda: outbox_handlers.callback_ended(services(), message_id))


@app.task(name="imprint.send_mail", bind=True)
def send_mail(self: "Task[..., Any]", message_id: str) -> None:
    """Send an e-mail to an owner. After a failed attempt it is due again by its schedule."""
    run(self, lambda: notices.deliver_mail(services(), message_id))


@app.task(name="imprint.fetch_images", bind=True)
def fetch_images(self: "Task[..., Any]", fetch_id: str) -> None:
    """Fetch and store the pictures of a request that named their addresses."""
    run(self, lambda: image_fetches.fetch_images(services(), fetch_id))


@app.task(name="imprint.screen")
def screen(sha256: str) -> None:
    """Ask the application's screener about a picture."""
    screening.ask(services(), sha256, send_screen_task)


@app.task(name="imprint.screened")
def screened(answer: Any, sha256: str) -> None:
    """Record the answer of the application's screening task, which calls this back."""
    screening.answer(services(), answer, sha256)


@app.task(name="imprint.ask_caption")
def ask_caption(job_id: str, sha256: str) -> None:
    """Ask the application's captioner about a picture."""
    asking.ask(services(), job_id, sha256, send_caption_task)


@app.task(name="imprint.captioned")
def captioned(answer: Any, job_id: str, sha256: str) -> None:
    """Record the answer of the application's captioning task, which calls this back."""
    asking.answer(services(), answer, job_id, sha256)


@app.task(name="imprint.delete", bind=True)
def delete(self: "Task[..., Any]", deletion_id: str) -> None:
    """Do what is left of a deletion. If it has to wait, the sweep launches it again."""
    run(self, lambda: run_deletion(services(), deletion_id, forget_results))


@app.task(name="imprint.send_alerts")
def send_alerts(message_id: str) -> None:
    """Send all waiting alerts to the operators, as one message for each channel."""
    notices.deliver_alerts(services(), message_id)
