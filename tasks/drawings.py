"""The task that draws on the device of a worker. It has a queue for each family: `draw.sd15`."""

from typing import Any

from celery import Task

from jobs.drawings import draw_step
from jobs.services import services
from tasks.app import app
from tasks.steps import run


@app.task(name="imprint.draw_pictures", bind=True)
def draw_pictures(self: "Task[..., Any]", drawing_id: str) -> None:
    """Draw the pictures of a drawing that are not drawn yet, and settle it."""
    run(self, lambda: draw_step.draw(services(), drawing_id))
