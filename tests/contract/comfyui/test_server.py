"""What holds for every ComfyUI: files turn up, refusals are told, pictures come back, nothing is left in the queue."""

import io
import json
import re
import secrets
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core.errors import GeneratorError, GeneratorTimeout, WorkflowInvalid
from generation.comfyui.delivery import install_lora
from generation.comfyui.draw import draw
from generation.comfyui.follow import PromptProgress
from generation.comfyui.patch import WorkflowLora, patch
from generation.comfyui.server import ComfyUIServer
from tests.contract.comfyui.conftest import PATIENCE_S, URL


def submit(server: ComfyUIServer, workflow: dict[str, Any]) -> str:
    return server.submit(workflow, uuid.uuid4().hex, str(uuid.uuid4()))


def test_a_file_is_listed_and_drawn_with(
    server: ComfyUIServer, shared: Path | None, make: Callable[..., Path], simple: dict[str, Any]
) -> None:
    path = make()
    assert path.name not in server.loras()
    name = install_lora(server, path, path.name, folder=shared, timeout_s=30)
    assert name in server.loras()
    if shared is not None:
        before = (shared / name).stat().st_mtime_ns
        assert install_lora(server, path, path.name, folder=shared) == name
        assert (shared / name).stat().st_mtime_ns == before  # what is there is not written again
    seen: list[PromptProgress] = []
    done = draw(server, simple, WorkflowLora(name, "sks dog"), seed=7, timeout_s=PATIENCE_S, report=seen.append)
    [(file, data)] = done.pictures
    picture = Image.open(io.BytesIO(data))
    assert (picture.format, picture.size) == ("PNG", (256, 256))
    assert re.fullmatch(r"imprint_\d{5}_\.png", file)
    content = json.loads(picture.text["prompt"])  # type: ignore[attr-defined]
    assert content["10"]["inputs"]["lora_name"] == name
    assert content["6"]["inputs"]["text"].startswith("sks dog, ")
    assert {step for progress in seen if progress.total == 4 for step in [progress.step]} >= {1, 2, 3, 4}
    assert server.queued() == ([], [])


def test_keys_that_nobody_knows_are_no_error(
    server: ComfyUIServer, shared: Path | None, make: Callable[..., Path], simple: dict[str, Any]
) -> None:
    path = make(odd=True)
    name = install_lora(server, path, path.name, folder=shared, timeout_s=30)
    assert draw(server, simple, WorkflowLora(name), timeout_s=PATIENCE_S).pictures


def test_an_unknown_lora_is_refused_and_named(server: ComfyUIServer, simple: dict[str, Any]) -> None:
    with pytest.raises(WorkflowInvalid, match=r"node 10 \(LoraLoader: .*[Vv]alue not in list") as refused:
        draw(server, simple, WorkflowLora("nobody-has-this.safetensors", "sks"))
    assert "nobody-has-this" in refused.value.details["nodes"]["10"]


def without(workflow: dict[str, Any], node_id: str, name: str) -> dict[str, Any]:
    del workflow[node_id]["inputs"][name]
    return workflow


def with_(workflow: dict[str, Any], node_id: str, **inputs: Any) -> dict[str, Any]:
    workflow[node_id]["inputs"] |= inputs
    return workflow


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda given: with_(given, "3", model=["4", 1]), "node 3.*type mismatch"),
        (lambda given: without(given, "3", "positive"), r"node 3.*input is missing \(positive\)"),
        (lambda given: with_(given, "3", steps=0), "node 3.*smaller than min"),
        (lambda given: with_(given, "3", cfg="high"), "node 3.*convert"),
        (lambda given: with_(given, "3", sampler_name="guess"), "node 3.*not in list"),
        (lambda given: with_(given, "3", model=["4", 0, 0]), "node 3.*length-2"),
        (lambda given: with_(given, "3", model=["77", 0]), "Exception when validating"),
        (lambda given: {**given, "20": {"class_type": "NobodyHasThis", "inputs": {}}}, "NobodyHasThis"),
        (lambda given: {node_id: node for node_id, node in given.items() if node_id != "9"}, "no outputs"),
    ],
    ids=["type", "missing", "too small", "no number", "choice", "link of three", "to nowhere", "class", "outputs"],
)
def test_what_is_wrong_is_refused_and_told(
    server: ComfyUIServer, simple: dict[str, Any], spoil: Callable[[dict[str, Any]], dict[str, Any]], why: str
) -> None:
    with pytest.raises(WorkflowInvalid, match=why):
        submit(server, spoil(simple))
    assert server.queued() == ([], [])


def test_a_prompt_that_is_refused_in_part_is_refused(server: ComfyUIServer, simple: dict[str, Any]) -> None:
    """The server itself would draw the good part and say nothing more."""
    simple["20"] = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "imprint"}}
    with pytest.raises(WorkflowInvalid, match=r"node 20 .*type mismatch"):
        submit(server, simple)
    assert server.queued()[1] == []


def test_the_same_key_draws_once(server: ComfyUIServer, simple: dict[str, Any]) -> None:
    key = secrets.token_hex(8)
    first = draw(server, simple, None, key=key, timeout_s=PATIENCE_S)
    second = draw(server, simple, None, key=key, timeout_s=PATIENCE_S)
    assert (first.prompt_id, first.pictures) == (second.prompt_id, second.pictures)


def test_who_waits_no_longer_takes_the_prompt_back(server: ComfyUIServer, simple: dict[str, Any]) -> None:
    simple["3"]["inputs"]["steps"] = 5000
    with pytest.raises(GeneratorTimeout):
        draw(server, simple, None, timeout_s=0.5 if not URL else 20)
    waiting = patch(simple, None, seed=2).workflow
    first, second = submit(server, waiting), submit(server, waiting)
    server.cancel(second)
    server.cancel(first)
    server.cancel("nobody-knows-this")

    class Enough(Exception):
        pass

    def enough(_: PromptProgress) -> None:
        raise Enough

    with pytest.raises(Enough):  # Ctrl-C, say
        draw(server, simple, None, seed=3, report=enough)
    simple["3"]["inputs"]["steps"] = 2
    assert draw(server, simple, None, timeout_s=PATIENCE_S).pictures  # the others are not in its way
    assert server.history(second) is None


def test_a_picture_that_is_not_there(server: ComfyUIServer) -> None:
    from generation.comfyui.server import OutputImage

    with pytest.raises(GeneratorError, match="answered 404 to /view"):
        server.picture(OutputImage("nothing.png", "", "output", "9"))
    assert server.history(str(uuid.uuid4())) is None
