"""The queue and history of the fake server, and the thread that executes one prompt at a time."""

import threading
import time
from collections.abc import Callable
from typing import Any

from fakes.comfyui.execution import Execution, NodeFailed, PromptInterrupted
from fakes.comfyui.folders import ComfyUIFolders

Item = tuple[int, str, dict[str, Any], dict[str, Any], list[str]]  # number, id, prompt, extra data, outputs
Send = Callable[[str, dict[str, Any], str | None], None]  # event, data, client; None: to all


class PromptQueue:
    """The queue and history. They are lost when the server restarts, as on a real one."""

    def __init__(self, folders: ComfyUIFolders, send: Send, seconds_per_step: float) -> None:
        self.folders, self.send, self.seconds_per_step = folders, send, seconds_per_step
        self.waiting: list[Item] = []
        self.running: Item | None = None
        self.history: dict[str, Any] = {}
        self._count = 0
        self._changed = threading.Condition()
        self._interrupt = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="fake-comfyui", daemon=True)
        self._thread.start()

    def put(
        self, prompt_id: str, prompt: dict[str, Any], extra: dict[str, Any], outputs: list[str], front: bool
    ) -> int:
        with self._changed:
            self._count += 1
            number = -self._count if front else self._count
            self.waiting.append((number, prompt_id, prompt, extra, outputs))
            self.waiting.sort(key=lambda item: item[0])
            self._changed.notify()
        self._say_length()
        return number

    def delete(self, ids: list[str] | None) -> None:
        """Remove waiting prompts; None: all."""
        with self._changed:
            self.waiting = [item for item in self.waiting if ids is not None and item[1] not in ids]
        self._say_length()

    def interrupt(self, prompt_id: str | None) -> None:
        """Stop the running prompt; with an id, only if it has that id."""
        running = self.running
        if running is not None and prompt_id in (None, running[1]):
            self._interrupt.set()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._interrupt.set()
            self._changed.notify()
        self._thread.join(10)

    def length(self) -> int:
        return len(self.waiting) + (self.running is not None)

    def _say_length(self) -> None:
        self.send("status", {"status": {"exec_info": {"queue_remaining": self.length()}}}, None)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self.waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                item = self.running = self.waiting.pop(0)
                self._interrupt.clear()
            self._say_length()
            outputs, status = self._execute(item)
            with self._changed:  # atomically from the queue to the history
                self.history[item[1]] = {"prompt": list(item), "outputs": outputs, "status": status, "meta": {}}
                self.running = None
            self.send("executing", {"node": None, "prompt_id": item[1]}, item[3].get("client_id"))
            self._say_length()

    def _execute(self, item: Item) -> tuple[dict[str, Any], dict[str, Any]]:
        """Execute a prompt; returns its outputs and its status with all messages."""
        _, prompt_id, prompt, extra, outputs = item
        messages: list[list[Any]] = []

        def send_event(event: str, data: dict[str, Any], keep: bool = False) -> None:
            data = {**data, "prompt_id": prompt_id}
            if keep:
                data["timestamp"] = int(time.time() * 1000)
                messages.append([event, data])
            self.send(event, data, extra.get("client_id"))

        run = Execution(prompt, self.folders, send_event, self._interrupt.is_set, self.seconds_per_step)
        send_event("execution_start", {}, keep=True)
        send_event("execution_cached", {"nodes": []}, keep=True)
        good = False
        try:
            run.run(outputs)
            good = True
            send_event("execution_success", {}, keep=True)
        except PromptInterrupted:
            about = {"node_id": run.at, "node_type": prompt[run.at]["class_type"] if run.at else None}
            send_event("execution_interrupted", {**about, "executed": list(run.values)}, keep=True)
        except NodeFailed as failed:
            about = {
                "node_id": failed.node_id,
                "node_type": prompt[failed.node_id]["class_type"],
                "executed": list(run.values),
                "exception_message": str(failed),
                "exception_type": type(failed.error).__name__,
                "traceback": [],
                "current_inputs": {},
                "current_outputs": list(run.values),
            }
            send_event("execution_error", about, keep=True)
        return run.outputs, {"status_str": "success" if good else "error", "completed": good, "messages": messages}
