"""Ten of ComfyUI's templates with a LoRA, a trigger word and a seed: each change is made once, and where it counts."""

import copy
from typing import Any

import pytest

from core.errors import WorkflowInvalid
from generation.comfyui.missing import require_all
from generation.comfyui.models import model_files
from generation.comfyui.nodes import NODES, Catalogue, NodeClass
from generation.comfyui.patch import WorkflowLora, patch
from generation.comfyui.prompts import contains_word
from generation.comfyui.server_log import lora_notes
from generation.comfyui.workflow import Workflow
from tests.generation.templates import TEMPLATES, default, edited, link, node

LORA = WorkflowLora("job_01.safetensors", "sks dog", 0.9)


def texts(nodes: dict[str, Any], word: str) -> list[str]:
    return [
        node_id
        for node_id, held in nodes.items()
        if any(isinstance(value, str) and contains_word(word, value) for value in held["inputs"].values())
    ]


@pytest.mark.parametrize("name", TEMPLATES)
class TestTen:
    def test_the_seed_is_set_where_it_comes_from(self, name: str) -> None:
        template = TEMPLATES[name]()
        given = copy.deepcopy(template.nodes)
        done = patch(template.nodes, None, seed=5)
        assert template.nodes == given
        assert {
            node_id: done.workflow[node_id]["inputs"][at] for node_id, at in template.seeds.items()
        } == dict.fromkeys(template.seeds, 5)
        assert sorted(done.seeds) == sorted(template.seeds)
        changed = {node_id for node_id in given if done.workflow[node_id] != given[node_id]}
        assert changed == set(template.seeds)
        assert patch(template.nodes, None, seed=6).workflow != done.workflow

    def test_the_trigger_word_stands_where_it_belongs(self, name: str) -> None:
        template = TEMPLATES[name]()
        done = patch(template.nodes, LORA)
        assert texts(done.workflow, "sks dog") == template.words
        again = patch(done.workflow, LORA)
        assert (again.workflow, again.added) == (done.workflow, [])

    def test_the_samplers_read_the_lora(self, name: str) -> None:
        template = TEMPLATES[name]()
        done = patch(template.nodes, LORA)
        assert done.loaders == template.after
        graph = Workflow(done.workflow)
        for sampler in template.samplers:
            seen, at = [], sampler
            while (before := graph.link(at, "model")) is not None:
                at = before[0]
                seen.append(at)
            assert set(seen) & set(done.added)

    def test_another_prompt_takes_the_place_of_the_old(self, name: str) -> None:
        template = TEMPLATES[name]()
        done = patch(template.nodes, LORA, prompt="on a boat")
        assert len(texts(done.workflow, "sks dog, on a boat")) >= 1
        assert len(texts(done.workflow, "on a boat")) == len(done.texts)


class TestSeeds:
    def test_a_number_that_has_another_use_stays(self) -> None:
        nodes = default().nodes | {"20": node("PrimitiveInt", value=42)}
        nodes["3"]["inputs"] |= {"seed": link("20"), "steps": link("20")}
        done = patch(nodes, None, seed=5).workflow
        assert (done["20"]["inputs"]["value"], done["3"]["inputs"]["seed"]) == (42, 5)

    def test_a_number_that_is_computed_is_replaced(self) -> None:
        nodes = default().nodes | {"20": node("RollDice", sides=6)}
        nodes["3"]["inputs"]["seed"] = link("20")
        done = patch(nodes, None, seed=5)
        assert (done.workflow["3"]["inputs"]["seed"], done.seeds) == (5, ["3"])

    def test_through_several_nodes_to_a_node_of_an_extension(self) -> None:
        nodes = default().nodes | {"20": node("PassOn", value=link("21")), "21": node("Seed (an extension)", seed=-1)}
        nodes["3"]["inputs"]["seed"] = link("20")
        done = patch(nodes, None, seed=5)
        assert (done.workflow["21"]["inputs"]["seed"], done.seeds) == (5, ["21"])

    def test_loops_end(self) -> None:
        nodes = default().nodes | {"20": node("PassOn", value=link("21")), "21": node("PassOn", value=link("20"))}
        nodes["3"]["inputs"]["seed"] = link("20")
        assert patch(nodes, None, seed=5).workflow["3"]["inputs"]["seed"] == 5

    def test_a_workflow_without_a_seed_says_so(self) -> None:
        nodes = default().nodes
        nodes["3"] = node(
            "FixedSampler", **{name: value for name, value in nodes["3"]["inputs"].items() if name != "seed"}
        )
        assert patch(nodes, LORA).added
        with pytest.raises(WorkflowInvalid, match="no seed that can be set"):
            patch(nodes, LORA, seed=5)


class TestRegions:
    def test_one_region_and_a_note_of_the_others(self) -> None:
        done = patch(TEMPLATES["area_composition"]().nodes, LORA)
        assert done.texts == ["25"]
        [note] = done.notes
        assert "node 25 only" in note
        assert "not into 24, 23" in note

    def test_where_the_workflow_marks_it(self) -> None:
        nodes = TEMPLATES["area_composition"]().nodes
        nodes["22"]["inputs"]["text"] = "a portrait of {trigger}, smiling"
        done = patch(nodes, LORA)
        assert done.workflow["22"]["inputs"]["text"] == "a portrait of sks dog, smiling"
        assert texts(done.workflow, "sks dog") == ["22"]
        assert patch(done.workflow, LORA).workflow == done.workflow

    def test_by_the_title_of_a_node(self) -> None:
        nodes = TEMPLATES["area_composition"]().nodes
        nodes["23"]["_meta"] = {"title": "Trigger word here"}
        assert texts(patch(nodes, LORA).workflow, "sks dog") == ["23"]

    def test_a_region_that_says_it_is_the_one(self) -> None:
        nodes = TEMPLATES["area_composition"]().nodes
        nodes["21"]["inputs"]["text"] = "the sks dog at a window"
        done = patch(nodes, LORA)
        assert done.workflow["21"]["inputs"]["text"] == "the sks dog at a window"
        assert texts(done.workflow, "sks dog") == ["21"]

    def test_masks_are_regions_too(self) -> None:
        nodes = TEMPLATES["area_composition"]().nodes | {"60": node("LoadImage", image="pose.png")}
        for number in range(6):
            nodes[f"3{number}"] = node("ConditioningSetMask", conditioning=link(f"2{number}"), mask=link("60", 1),
                                       strength=1.0, set_cond_area="default")  # fmt: skip
        assert len(texts(patch(nodes, LORA).workflow, "sks dog")) == 1


# ---- what a server lacks ----------------------------------------------------------------------------------------


def described(
    *, without: str = "", files: tuple[str, ...] = ("ae.safetensors", "qwen_3_4b.safetensors")
) -> dict[str, Any]:
    """A server's nodes, with these files."""

    def choices(wanted: Any) -> list[Any]:
        return ["COMBO", {"options": list(files)}] if isinstance(wanted, str) and wanted[0] == "@" else [wanted, {}]

    def about(kind: NodeClass) -> dict[str, Any]:
        return {"input": {"required": {name: choices(wanted) for name, wanted in kind.inputs.items()}},
                "output": list(kind.outputs)}  # fmt: skip

    return {name: about(kind) for name, kind in NODES.items() if name != without}


def test_missing_files_are_named_with_where_to_get_them() -> None:
    workflow = Workflow(TEMPLATES["z_image_turbo"]().nodes)
    with pytest.raises(WorkflowInvalid) as raised:
        require_all(workflow, described(), edited(), "the server")
    content = raised.value.details["nodes"]
    assert set(content) == {"57:28"}
    assert "no file z_image_turbo_bf16.safetensors: get it from https://huggingface.co/Comfy-Org/" in content["57:28"]
    with pytest.raises(WorkflowInvalid, match=r"node 57:28: the server has no file z_image_turbo_bf16.safetensors$"):
        require_all(workflow, described(), TEMPLATES["z_image_turbo"]().nodes, "the server")


def test_missing_nodes_are_named_with_their_package() -> None:
    nodes = default().nodes | {"20": node("SuperSampler", seed=1)}
    given = {"nodes": [{"id": 20, "type": "SuperSampler", "properties": {"cnr_id": "super-nodes"}}], "links": []}
    info = described(files=("sd15.safetensors",))
    with pytest.raises(
        WorkflowInvalid, match="node 20: the server has no node SuperSampler of the package super-nodes"
    ):
        require_all(Workflow(nodes), info, given, "the server")
    del nodes["20"]
    require_all(Workflow(nodes), info, given, "the server")


def test_the_files_of_the_loaders() -> None:
    workflow = Workflow(TEMPLATES["sdxl_refiner"]().nodes, Catalogue())
    assert model_files(workflow, ["4"]) == [("4", "checkpoints", "sd_xl_base_1.0.safetensors")]
    assert model_files(Workflow(TEMPLATES["flux_dev"]().nodes), ["12"]) == [
        ("12", "diffusion_models", "z_image_turbo_bf16.safetensors")
    ]


@pytest.mark.parametrize("odd", [
    None, [], {"nodes": 5}, {"nodes": [5, {"properties": 4}], "models": "x", "definitions": {"subgraphs": {"a": 1}}},
    {"nodes": [{"type": "X", "properties": {"models": [{"name": 5, "url": "https://x"}, "y"]}}]},
])  # fmt: skip
def test_odd_workflows_are_no_sources(odd: Any) -> None:
    with pytest.raises(WorkflowInvalid, match=r"has no file sd15\.safetensors"):
        require_all(Workflow(default().nodes), described(), odd, "the server")


def test_what_a_server_logs_of_a_lora() -> None:
    lines = [
        "got prompt\n",
        "lora key not loaded: unet.attn1.to_q.lora_A.weight\n",
        "lora key not loaded: of.another.file.lora_A.weight\n",
        "ERROR lora diffusion_model.input_blocks.4.1.proj_in.weight shape '[640, 640, 1, 1]' is invalid\n",
    ]
    assert lora_notes(lines, ["unet.attn1.to_q.lora_A.weight", "unet.ff.net.2.lora_A.weight"]) == [
        "the server did not load 1 of the 2 tensors of the LoRA, such as unet.attn1.to_q.lora_A.weight",
        "1 layers of the model have another shape than the LoRA, such as "
        "diffusion_model.input_blocks.4.1.proj_in.weight: is it of another family?",
    ]
    assert lora_notes(lines[:1], ["a"]) == []
