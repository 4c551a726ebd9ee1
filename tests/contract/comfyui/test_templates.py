"""Templates, workflows of the editor, and files of other families on a server: the fake one, which has all of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from core.errors import WorkflowInvalid
from generation.comfyui.delivery import install_lora
from generation.comfyui.draw import draw
from generation.comfyui.patch import WorkflowLora
from generation.comfyui.server import ComfyUIServer
from jobs.subjects.comfyui_drawing import ComfyUITarget, draw_on_comfyui
from jobs.subjects.lora_weights import inspect_weights
from tests.contract.comfyui.conftest import URL
from tests.contract.comfyui.test_fake import stated
from tests.generation.templates import TEMPLATES, default, edited
from tests.lora_layouts import written
from tests.servers.fake_comfyui import FakeComfyUI, fake_comfyui
from training.lora.safetensor import pack, tensor, unpack

pytestmark = pytest.mark.skipif(bool(URL), reason="runs on the fake alone")


@pytest.fixture(scope="module")
def converting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeComfyUI]:
    """A server with the custom node that converts workflows, the assets API, and the LoRAs that templates name."""
    with fake_comfyui(
        tmp_path_factory.mktemp("comfyui"), "--assets", "--converter", "--seconds-per-step", "0.001"
    ) as made:
        for name in ("styles/ink.safetensors", "detail.safetensors"):
            (made.loras / name).parent.mkdir(exist_ok=True)
            (made.loras / name).write_bytes(written("sd15", "kohya"))
        yield made


@pytest.fixture
def server(converting: FakeComfyUI, http: httpx2.Client) -> ComfyUIServer:
    return ComfyUIServer(converting.url, http)


@pytest.fixture
def where(converting: FakeComfyUI) -> ComfyUITarget:
    return ComfyUITarget(converting.url, converting.loras, 60.0)


def lora(folder: Path, family: str = "sd15", layout: str = "kohya", **metadata: str) -> Path:
    path = folder / f"{family}.safetensors"
    path.write_bytes(written(family, layout, **{"imprint_family": family, **metadata}))
    return path


@pytest.mark.parametrize("name", TEMPLATES)
def test_ten_templates_are_drawn_with_the_lora_and_the_seed(server: ComfyUIServer, name: str, tmp_path: Path) -> None:
    family = "z-image" if name.startswith(("z_image", "flux")) else "sdxl" if name == "sdxl_refiner" else "sd15"
    path = lora(tmp_path, family, "comfyui" if family == "z-image" else "kohya")
    file = install_lora(server, path, f"{name}.safetensors", folder=None)
    first, second = (draw(server, TEMPLATES[name]().nodes, WorkflowLora(file, "sks dog"), seed=seed) for seed in (5, 6))
    assert first.pictures != second.pictures
    for number, (seed, done) in enumerate(((5, first), (6, second))):
        passes = stated(done.pictures[0][1])["passes"]
        assert {one["seed"] for one in passes} == {seed}, number
        assert file in [held[0] for held in passes[0]["model"]["loras"]]
        assert any("sks dog" in text for text in passes[0]["positive"])


def test_a_workflow_of_the_editor_is_converted_by_the_server(server: ComfyUIServer, tmp_path: Path) -> None:
    file = install_lora(server, lora(tmp_path, "z-image", "comfyui"), "editor.safetensors", folder=None)
    done = draw(server, edited(), WorkflowLora(file, "sks dog"), seed=5, prompt="in the snow")
    [one] = stated(done.pictures[0][1])["passes"]
    assert (one["seed"], one["positive"], one["steps"]) == (5, ["sks dog, in the snow"], 4)
    assert (one["model"]["kind"], one["model"]["loras"]) == ("z-image", [[file, 1.0, 11]])
    assert done.patched.workflow["59"]["inputs"]["value"] == 5
    assert set(done.patched.workflow) >= {"57:3", "57:28", "9"}
    with pytest.raises(WorkflowInvalid, match="cannot convert the workflow to API format: Invalid workflow format"):
        draw(server, {"nodes": [{"id": 1}], "links": []}, None)


def test_a_server_without_the_route_refuses_it_as_before(fake: FakeComfyUI, http: httpx2.Client) -> None:
    with pytest.raises(WorkflowInvalid, match="format of ComfyUI's editor"):
        draw(ComfyUIServer(fake.url, http), edited(), None)


def test_a_missing_model_is_named_with_its_address(server: ComfyUIServer, converting: FakeComfyUI) -> None:
    model = converting.folder / "models" / "diffusion_models" / "z_image_turbo_bf16.safetensors"
    model.rename(model.with_suffix(".away"))
    try:
        with pytest.raises(WorkflowInvalid, match=r"node 57:28: the server has no file .*: get it from https://hugg"):
            draw(server, edited(), None)
    finally:
        model.with_suffix(".away").rename(model)


# ---- the model's family -----------------------------------------------------------------------------------------


def known_model(converting: FakeComfyUI, name: str, metadata: dict[str, str]) -> dict[str, Any]:
    """The simplest workflow on a checkpoint with this metadata."""
    path = converting.folder / "models" / "checkpoints" / name
    path.write_bytes(pack({"model.diffusion_model.out.0.bias": tensor(np.zeros(4))}, metadata))
    nodes = default().nodes
    nodes["4"]["inputs"]["ckpt_name"] = name
    return nodes


XL = {"modelspec.architecture": "stable-diffusion-xl-v1-base"}


def test_a_lora_of_another_family_than_the_checkpoints_is_refused(
    where: ComfyUITarget, converting: FakeComfyUI, tmp_path: Path
) -> None:
    weights = inspect_weights(lora(tmp_path))
    with pytest.raises(WorkflowInvalid, match=r"node 4 loads known-xl.safetensors, a model of sdxl .* LoRA is of sd15"):
        draw_on_comfyui(where, known_model(converting, "known-xl.safetensors", XL), weights)
    path = tmp_path / "flux.safetensors"
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    pair = {f"{stem}.lora_down.weight": tensor(np.ones((4, 9))), f"{stem}.lora_up.weight": tensor(np.ones((9, 4)))}
    path.write_bytes(pack(pair, {}))
    with pytest.raises(WorkflowInvalid, match=r"LoRA is of FLUX.1"):
        draw_on_comfyui(where, known_model(converting, "known-xl.safetensors", XL), inspect_weights(path))


def test_of_the_same_family_there_is_nothing_to_say(
    where: ComfyUITarget, converting: FakeComfyUI, tmp_path: Path
) -> None:
    weights = inspect_weights(lora(tmp_path, "sdxl"))
    assert draw_on_comfyui(where, known_model(converting, "known-xl.safetensors", XL), weights).notes == []


def test_where_the_server_cannot_say_it_is_said_and_its_log_counted(where: ComfyUITarget, tmp_path: Path) -> None:
    """An SDXL file on the SD 1.5 checkpoint without metadata: a picture, but not without a word."""
    path = lora(tmp_path, "sdxl")
    done = draw_on_comfyui(where, default().nodes, inspect_weights(path))
    assert done.pictures
    unsure, missed = done.notes
    assert unsure == "the server cannot say which family sd15.safetensors (node 4) is of: the LoRA is of sdxl"
    # The one module whose name SD 1.5 does not have; layers of another shape are logged by real servers only.
    assert f"did not load 3 of the {len(unpack(path.read_bytes())[0])} tensors" in missed


def test_what_is_no_lora_of_ours_is_sent_with_a_note(where: ComfyUITarget, tmp_path: Path) -> None:
    path = tmp_path / "loha.safetensors"
    stem = "lora_unet_down_blocks_0_attentions_0_proj_in"
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    path.write_bytes(pack({f"{stem}.{name}": tensor(np.ones((4, 4))) for name in names}, {}))
    done = draw_on_comfyui(where, default().nodes, inspect_weights(path))
    [[_, _, modules]] = stated(done.pictures[0][1])["passes"][0]["model"]["loras"]
    assert modules == 1
    assert "the file contains LoHa: it is sent as it is" in done.notes[0]
    json.dumps(done.notes)
