"""A ComfyUI to test against: the fake one, or a real one where IMPRINT_TEST_COMFYUI_URL names it.

A real one needs a Stable Diffusion 1.5 checkpoint, and its models/loras folder under IMPRINT_TEST_COMFYUI_LORAS, or
--enable-assets. Tests of what goes wrong run on the fake alone.
"""

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from generation.comfyui.server import ComfyUIServer, open_comfyui_client
from tests.generation.workflows import workflow
from tests.servers.fake_comfyui import FakeComfyUI, fake_comfyui
from training.lora.file import serialize_lora
from training.lora.safetensor import pack, tensor

URL = os.environ.get("IMPRINT_TEST_COMFYUI_URL")
LORAS = os.environ.get("IMPRINT_TEST_COMFYUI_LORAS")
PATIENCE_S = 600.0 if URL else 60.0
_MODULE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="session")
def http() -> Iterator[httpx2.Client]:
    with open_comfyui_client(timeout_s=30) as client:
        yield client


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeComfyUI]:
    """One for a module's tests, with the assets API."""
    with fake_comfyui(tmp_path_factory.mktemp("comfyui"), "--assets", "--seconds-per-step", "0.005") as made:
        yield made


@pytest.fixture
def server(request: pytest.FixtureRequest, http: httpx2.Client) -> ComfyUIServer:
    """Any server that speaks the API."""
    return ComfyUIServer(URL or request.getfixturevalue("fake").url, http)


@pytest.fixture
def shared(request: pytest.FixtureRequest) -> Path | None:
    """The server's models/loras as seen from here; None for a real one that has only its assets API."""
    if URL:
        return Path(LORAS) if LORAS else None
    folder: Path = request.getfixturevalue("fake").loras
    return folder


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Makes a LoRA file of Stable Diffusion 1.5's shapes under a name of its own, or one with unknown keys."""

    def made(*, odd: bool = False) -> Path:
        chance = np.random.default_rng(1)
        down, up = chance.normal(size=(4, 320)).astype(np.float32), np.zeros((320, 4), np.float32)
        path = tmp_path / f"test_{secrets.token_hex(6)}.safetensors"
        if odd:
            path.write_bytes(pack({f"unet.{_MODULE}.lora_A.weight": tensor(down)}, {}))
        else:
            path.write_bytes(serialize_lora("sd15", {_MODULE: (down, up)}, 32.0, {}))
        return path

    return made


@pytest.fixture
def simple(server: ComfyUIServer) -> dict[str, Any]:
    """The simplest workflow, with a checkpoint that the server has, small and short."""
    made = workflow("sd15")
    names = server.object_info("CheckpointLoaderSimple")["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"]
    choices = names[1]["options"] if names[0] == "COMBO" else names[0]
    fitting = [name for name in choices if "sd15" in name or "v1-5" in name]
    made["4"]["inputs"]["ckpt_name"] = fitting[0]
    made["5"]["inputs"] |= {"width": 256, "height": 256}
    made["3"]["inputs"]["steps"] = 4
    return made
