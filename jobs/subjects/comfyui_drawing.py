"""Draw with a LoRA on a ComfyUI server: in the form that it reads, on a checkpoint of the LoRA's family."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.errors import GeneratorError, WorkflowInvalid
from generation.comfyui import draw as comfyui
from generation.comfyui.delivery import install_lora
from generation.comfyui.follow import OnProgress
from generation.comfyui.patch import WorkflowLora
from generation.comfyui.server import ComfyUIServer, open_comfyui_client
from jobs.services import Services
from jobs.subjects import loras
from jobs.subjects.lora_weights import LoraWeights, inspect_weights
from training.lora import formats as lora_formats
from training.lora import origin
from training.lora.readers import CLOSE, WHOLE, readers
from training.lora.reading import read_lora

Say = Callable[[str], None]


@dataclass(frozen=True)
class ComfyUITarget:
    """A ComfyUI server, and the path of its models/loras on this machine; None: files are sent by its assets API."""

    url: str
    loras: Path | None = None
    timeout_s: float = 600.0


def comfyui_target(services: Services) -> ComfyUITarget:
    """The server in the settings. Raises GeneratorError if there is none."""
    settings = services.settings
    if settings.comfyui_url is None:
        raise GeneratorError("no ComfyUI server is configured: set IMPRINT_COMFYUI_URL")
    return ComfyUITarget(settings.comfyui_url.get_secret_value(), settings.comfyui_loras, settings.comfyui_timeout_s)


def draw_on_comfyui(
    where: ComfyUITarget,
    workflow: Any,
    weights: LoraWeights | None,
    *,
    strength: float = loras.STRENGTH,
    trigger_word: str | None = None,
    say: Say = lambda _: None,
    report: OnProgress = lambda _: None,
    **more: Any,
) -> comfyui.ComfyUIDrawing:
    """Send the weights to a server and draw a workflow with them; `more` is passed to `generation.comfyui.draw`.

    A file that ComfyUI would load only in part is converted first. `say` is called with each step; the drawing's
    `notes` are what a person should know of its result. Raises WorkflowInvalid and GeneratorError.
    """
    with open_comfyui_client() as http, tempfile.TemporaryDirectory(prefix="imprint-") as folder:
        server, notes = ComfyUIServer(where.url, http), list[str]()
        lora: WorkflowLora | None = None
        keys: frozenset[str] = frozenset()
        if weights is not None:
            ready = _loadable(weights, Path(folder), notes)
            say(f"sending {ready.file} to {where.url}")
            listed = install_lora(server, ready.path, ready.file, folder=where.loras)
            word = ready.trigger_word if trigger_word is None else trigger_word
            parsed = read_lora(ready.path)
            has_text_encoders = any(name.startswith("text_encoder") for name in parsed.modules)
            lora, keys = WorkflowLora(listed, word, strength, has_text_encoders), frozenset(parsed.tensors)
        say("drawing")
        done = comfyui.draw(
            server,
            workflow,
            lora,
            timeout_s=where.timeout_s,
            report=report,
            lora_keys=keys,
            check=lambda models: notes.extend(_family_notes(server, weights, models)) if weights else None,
            **more,
        )
    return replace(done, notes=[*notes, *done.notes])


def send_to_comfyui(where: ComfyUITarget, weights: LoraWeights) -> str:
    """Send the weights to a server, in a form that it loads; returns the name by which it lists them.

    Raises GeneratorError.
    """
    with open_comfyui_client() as http, tempfile.TemporaryDirectory(prefix="imprint-") as folder:
        ready = _loadable(weights, Path(folder), [])
        return install_lora(ComfyUIServer(where.url, http), ready.path, ready.file, folder=where.loras)


def cancel_drawing(where: ComfyUITarget, key: str) -> bool:
    """Cancel what was drawn under this key; False if the server does not draw it now. Raises GeneratorError."""
    with open_comfyui_client() as http:
        return comfyui.cancel(ComfyUIServer(where.url, http), key)


def _loadable(weights: LoraWeights, folder: Path, notes: list[str]) -> LoraWeights:
    """The weights in a form that ComfyUI loads completely: as they are, or a converted copy in `folder`."""
    if weights.contains:
        notes.append(f"the file contains {', '.join(weights.contains)}: it is sent as it is, and ComfyUI may know it")
        return weights
    lora = read_lora(weights.path)
    how = readers(lora).get("ComfyUI", WHOLE)
    if how in (WHOLE, CLOSE) or lora.family is None:
        return weights
    form = lora_formats.home_form(lora.family)
    notes.append(f"ComfyUI reads {lora.form} keys of {lora.family} {how}: the file was converted to {form}")
    path = folder / weights.path.name
    path.write_bytes(lora_formats.serialize_as(lora, form))
    return replace(weights, path=path, file=inspect_weights(path).file)


def _family_notes(server: ComfyUIServer, weights: LoraWeights, models: list[tuple[str, str, str]]) -> list[str]:
    """What the server says of the models that the LoRA follows: (node, folder, file) each.

    Raises WorkflowInvalid for a model of another family: its picture would be drawn without the LoRA, and no word.
    """
    notes = []
    for node_id, folder, file in models:
        metadata = server.model_metadata(folder, file)
        family = origin.declared_family(metadata) if metadata else None
        if family is not None and weights.family is not None and family != weights.family:
            raise WorkflowInvalid(
                f"node {node_id} loads {file[:120]}, a model of {family} by its metadata, but the LoRA is of "
                f"{weights.family}",
                {"nodes": {node_id: f"a model of {family}"}},
            )
        if family is None or weights.family is None:
            of = weights.family or "its family"
            notes.append(f"the server cannot say which family {file[:120]} (node {node_id}) is of: the LoRA is of {of}")
    return notes
