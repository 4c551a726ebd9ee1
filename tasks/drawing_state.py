"""The progress of a drawing as the state of its task: `PROGRESS`, with the node that ComfyUI runs, and its steps."""

import time
from typing import Any

from celery import Task

from generation.comfyui.follow import PromptProgress

STATE = "PROGRESS"
_EVERY_S = 1.0


class DrawingState:
    """Reports the progress of one execution of a task, at most once a second."""

    def __init__(self, task: "Task[..., Any]") -> None:
        self._task = task
        self._said = 0.0

    def report(self, progress: PromptProgress) -> None:
        now = time.monotonic()
        if self._task.request.is_eager or now - self._said < _EVERY_S:
            return
        self._said = now
        about = {"node": progress.node_id, "step": progress.step, "total": progress.total}
        self._task.update_state(state=STATE, meta=about)
