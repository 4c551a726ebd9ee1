"""The task that draws on the device of a worker, with a queue for each family (`draw.sd15`), and ComfyUI's files."""

from typing import Any

from celery import Task

from jobs.drawings import draw_step
from jobs.results import in_comfyui
from jobs.services import services
from tasks.app import app
from tasks.stages import run


@app.task(name="imprint.draw_pictures", bind=True)
def draw_pictures(self: "Task[..., Any]", drawing_id: str) -> None:
    """Draw the pictures of a drawing that are not drawn yet, and settle it."""
    run(self, lambda: draw_step.draw(services(), drawing_id))


@app.task(name="imprint.send_to_comfyui", bind=True)
def send_to_comfyui(self: "Task[..., Any]", job_id: str) -> None:
    """Send the LoRA of a training to the operator's ComfyUI."""
    run(self, lambda: in_comfyui.deliver(services(), job_id))
