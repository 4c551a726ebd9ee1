"""The fake alone: five workflows through its validation, and what goes wrong."""

import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from core.errors import GeneratorError, GeneratorTimeout, GeneratorUnreachable
from generation.comfyui.delivery import install_lora
from generation.comfyui.draw import draw
from generation.comfyui.follow import PromptProgress
from generation.comfyui.patch import WorkflowLora
from generation.comfyui.server import ComfyUIServer
from tests.contract.comfyui.conftest import URL
from tests.generation.workflows import NAMES, workflow
from tests.servers.fake_comfyui import FakeComfyUI, fake_comfyui
from tests.site import until

pytestmark = pytest.mark.skipif(bool(URL), reason="runs on the fake alone")


def stated(data: bytes) -> dict[str, Any]:
    """What a picture says that it would have been drawn from."""
    found: dict[str, Any] = json.loads(Image.open(io.BytesIO(data)).text["fake"])  # type: ignore[attr-defined]
    return found


@pytest.fixture
def lora(server: ComfyUIServer, fake: FakeComfyUI, make: Callable[..., Path]) -> str:
    for name in ("styles/ink.safetensors", "detail.safetensors"):  # what the chain of LoRAs names
        (fake.loras / name).parent.mkdir(exist_ok=True)
        (fake.loras / name).write_bytes(make().read_bytes())
    path = make()
    return install_lora(server, path, path.name, folder=None)  # through the assets API


@pytest.mark.parametrize("name", NAMES)
def test_five_workflows_are_accepted_and_drawn_with_the_lora(server: ComfyUIServer, lora: str, name: str) -> None:
    done = draw(server, workflow(name), WorkflowLora(lora, "sks dog", 0.8), seed=5)
    plain = draw(server, workflow(name), None, seed=5)
    assert len(done.pictures) == len(plain.pictures) == (4 if name == "lora-chain" else 1)
    for (_, data), (_, before) in zip(done.pictures, plain.pictures, strict=True):
        assert data != before
        with_lora, bare = stated(data)["passes"], stated(before)["passes"]
        for one, other in zip(with_lora, bare, strict=True):
            refines = "refiner" in one["model"]["base"]
            assert ([lora, 0.8] in [found[:2] for found in one["model"]["loras"]]) is not refines
            assert any("sks dog" in text for text in one["positive"]) is not refines
            assert not any("sks dog" in text for text in one["negative"])
            assert [found for found in one["model"]["loras"] if found[0] != lora] == other["model"]["loras"]


def test_the_loader_says_which_keys_it_did_not_take(
    server: ComfyUIServer, fake: FakeComfyUI, make: Callable[..., Path], simple: dict[str, Any]
) -> None:
    good, odd = make(), make(odd=True)
    for path, modules in ((good, 1), (odd, 0)):
        name = install_lora(server, path, path.name, folder=fake.loras)
        [(_, data)] = draw(server, simple, WorkflowLora(name)).pictures
        [one] = stated(data)["passes"]
        assert one["model"]["loras"] == [[name, 1.0, modules]]
    assert "lora key not loaded: unet.down_blocks.0" in fake.log.read_text()


def test_a_node_that_fails_is_told(server: ComfyUIServer, fake: FakeComfyUI, simple: dict[str, Any]) -> None:
    (fake.loras / "torn.safetensors").write_bytes(b"not one")
    with pytest.raises(GeneratorError, match=r"node 10 \(LoraLoader\) failed: Error while deserializing") as failed:
        draw(server, simple, WorkflowLora("torn.safetensors"))
    assert failed.value.details == {"node": "10"}


def test_somebody_else_interrupts(server: ComfyUIServer, simple: dict[str, Any]) -> None:
    simple["3"]["inputs"]["steps"] = 5000

    def interrupt(progress: PromptProgress) -> None:
        if progress.step == 3:
            server.http.post(f"{server.url}/interrupt", json={})

    with pytest.raises(GeneratorError, match="was interrupted"):
        draw(server, simple, None, report=interrupt)


def test_nothing_saved_is_an_error(server: ComfyUIServer, simple: dict[str, Any]) -> None:
    del simple["9"]
    simple["20"] = {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}}
    [(name, _)] = draw(server, simple, None).pictures  # a preview is better than nothing
    assert name.startswith("ComfyUI_temp")


def test_without_a_websocket_and_without_assets(
    tmp_path: Path, http: httpx2.Client, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_comfyui(tmp_path / "deaf", "--no-websocket", "--seconds-per-step", "0") as deaf:
        server, path = ComfyUIServer(deaf.url + "/", http), make()
        with pytest.raises(GeneratorError, match="does not accept uploads: start it with --enable-assets"):
            install_lora(server, path, path.name, folder=None)
        with pytest.raises(GeneratorError, match="is not a folder on this machine"):
            install_lora(server, path, path.name, folder=tmp_path / "nowhere")
        with pytest.raises(GeneratorTimeout, match="is not its models/loras folder"):
            install_lora(server, path, path.name, folder=tmp_path, timeout_s=0.1)
        with pytest.raises(GeneratorError, match="is not a plain file name"):
            install_lora(server, path, "../x.safetensors", folder=deaf.loras)
        name = install_lora(server, path, path.name, folder=deaf.loras)
        assert draw(server, workflow("sd15"), WorkflowLora(name)).pictures


def test_the_assets_api_of_older_builds(tmp_path: Path, http: httpx2.Client, make: Callable[..., Path]) -> None:
    with fake_comfyui(tmp_path / "old", "--old-assets") as old:
        server, path = ComfyUIServer(old.url, http), make()
        stored = install_lora(server, path, path.name, folder=None)
        assert stored != path.name  # named by its content
        assert (old.loras / stored).read_bytes() == path.read_bytes()
        odd = path.rename(path.with_name("odd name.safetensors"))
        with pytest.raises(GeneratorError, match="rejects odd name"):
            server.upload_lora(odd, odd.name)


def test_a_server_that_is_started_anew_has_forgotten_and_one_that_is_gone_is_unreachable(
    tmp_path: Path, http: httpx2.Client, simple: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("generation.comfyui.follow._FORGOTTEN_S", 0.5)
    monkeypatch.setattr("generation.comfyui.follow._AWAY_S", 1.0)
    simple["3"]["inputs"]["steps"] = 5000
    with fake_comfyui(tmp_path / "mortal") as mortal:
        server = ComfyUIServer(mortal.url, http)
        content: list[GeneratorError] = []

        def follow() -> None:
            try:
                draw(server, simple, None)
            except GeneratorError as error:
                content.append(error)

        for again, kind, why in (
            (True, GeneratorError, "does not know the prompt"),
            (False, GeneratorUnreachable, "be reached"),
        ):
            thread = threading.Thread(target=follow)
            thread.start()
            until(lambda: bool(server.queued()[0]), 60, "the prompt at work")
            mortal.kill()
            if again:
                mortal.start()
            thread.join(30)
            assert isinstance(content[-1], kind), content
            assert why in content[-1].message
    with pytest.raises(GeneratorUnreachable, match="cannot be reached"):
        server.loras()


@pytest.mark.parametrize("url", ["ftp://x", "x:8188", "http://", "http://user:word@x", "http://x/?a=1", ""])
def test_addresses_that_are_none(url: str, http: httpx2.Client) -> None:
    with pytest.raises(GeneratorError, match="must start with http:// or https://"):
        ComfyUIServer(url, http)


def test_a_server_that_is_something_else(http: httpx2.Client) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>welcome</html>" if "LoraLoader" in self.path else b"[1]")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        server = ComfyUIServer(f"http://127.0.0.1:{other.server_port}", http)
        for ask in (server.loras, server.object_info, server.queued, lambda: server.history("x")):
            with pytest.raises(GeneratorError, match="a response that ComfyUI's API does not have"):
                ask()
        other.shutdown()
