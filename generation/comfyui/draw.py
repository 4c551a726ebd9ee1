"""Draw on a ComfyUI server: patch the workflow, submit it, wait for it and download its pictures."""

import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from core.errors import GeneratorUnreachable
from generation.comfyui.follow import EventSocket, OnProgress, follow, open_events
from generation.comfyui.missing import require_all
from generation.comfyui.models import model_files
from generation.comfyui.nodes import Catalogue
from generation.comfyui.patch import Patched, WorkflowLora, patch
from generation.comfyui.server import ComfyUIServer
from generation.comfyui.server_log import ServerLog
from generation.comfyui.workflow import Workflow, is_of_editor

_NAMESPACE = uuid.UUID("6f1d1a52-2b35-4f6a-8d0c-5f3d0f3a7c11")

ModelFile = tuple[str, str, str]  # a loader node, the folder and the file that it loads


@dataclass(frozen=True)
class ComfyUIDrawing:
    """The pictures of a workflow, each with its file name on the server."""

    prompt_id: str
    pictures: list[tuple[str, bytes]]
    patched: Patched
    notes: list[str] = field(default_factory=list)  # what a person should know of the result


def draw(
    server: ComfyUIServer,
    workflow: Any,
    lora: WorkflowLora | None,
    *,
    prompt: str | None = None,
    seed: int | None = None,
    loaders: tuple[str, ...] = (),
    timeout_s: float = 600.0,
    key: str | None = None,
    report: OnProgress = lambda _: None,
    lora_keys: Collection[str] = (),
    check: Callable[[list[ModelFile]], None] = lambda _: None,
) -> ComfyUIDrawing:
    """Draw `workflow` with the LoRA. The server must list `lora.file` (see `install_lora`).

    key: a second call with the same key returns the pictures of the first, or waits for them, as long as the server
    remembers them. lora_keys: the tensors of the LoRA file, to say how many the server did not load. check: called
    with the model files that the LoRA follows before anything is drawn; what it raises ends the drawing. If the wait
    ends early, the prompt is cancelled. Raises WorkflowInvalid, and GeneratorError or one of its subclasses.
    """
    object_info = server.object_info()
    api_format = _in_api_format(server, workflow)
    require_all(Workflow(api_format), object_info, workflow, server.place)
    done = patch(api_format, lora, Catalogue.of(object_info), prompt=prompt, seed=seed, loaders=loaders)
    check(model_files(Workflow(done.workflow), done.loaders))
    log = ServerLog(server) if lora_keys else None
    client_id = uuid.uuid4().hex
    wanted = _prompt_id(key) if key else str(uuid.uuid4())
    with open_events(server, client_id) as events:
        prompt_id = wanted if key and _is_known(server, wanted) else server.submit(done.workflow, client_id, wanted)
        pictures = _fetch_images(server, prompt_id, events, timeout_s, report)
    return ComfyUIDrawing(prompt_id, pictures, done, [*done.notes, *(log.notes(lora_keys) if log else [])])


def cancel(server: ComfyUIServer, key: str) -> bool:
    """Cancel the drawing with this key; False if its prompt neither waits nor runs."""
    running, waiting = server.queued()
    prompt_id = _prompt_id(key)
    if prompt_id not in running and prompt_id not in waiting:
        return False
    server.cancel(prompt_id)
    return True


def _prompt_id(key: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, key))


def _in_api_format(server: ComfyUIServer, workflow: Any) -> Any:
    """The workflow in API format: as it is, or from the editor's by the server's own route, if it has one."""
    if not is_of_editor(workflow):
        return workflow
    converted = server.convert_workflow(workflow)
    return workflow if converted is None else converted  # what is still the editor's is refused by `patch`


def _is_known(server: ComfyUIServer, prompt_id: str) -> bool:
    running, waiting = server.queued()
    return prompt_id in running or prompt_id in waiting or server.history(prompt_id) is not None


def _fetch_images(
    server: ComfyUIServer, prompt_id: str, events: EventSocket, timeout_s: float, report: OnProgress
) -> list[tuple[str, bytes]]:
    found = follow(server, prompt_id, events, timeout_s=timeout_s, report=report)
    pictures = []
    for picture in found:
        try:
            data = server.picture(picture)
        except GeneratorUnreachable:
            data = server.picture(picture)  # try once more: drawing was the expensive part
        pictures.append((PurePosixPath(picture.filename.replace("\\", "/")).name, data))
    return pictures
