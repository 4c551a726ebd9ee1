"""Workflows with a LoRA put in: five against what they should become, and what cannot be patched."""

import copy
from dataclasses import replace
from typing import Any

import pytest

from core.errors import WorkflowInvalid
from generation.comfyui.nodes import NODES, Catalogue
from generation.comfyui.patch import LORA_LOADERS, WorkflowLora, patch
from generation.comfyui.prompts import contains_word
from generation.comfyui.workflow import Workflow
from tests.generation.workflows import NAMES, golden, workflow

LORA = WorkflowLora("job_01.safetensors", "sks dog", 0.9)


def changed(name: str, node_id: str, **inputs: Any) -> dict[str, Any]:
    made = workflow(name)
    made[node_id]["inputs"] |= inputs
    return made


@pytest.mark.parametrize("name", NAMES)
class TestFive:
    def test_as_it_should_be_and_once(self, name: str) -> None:
        given = workflow(name)
        before = copy.deepcopy(given)
        done = patch(given, LORA)
        assert done.workflow == golden(name)
        assert given == before
        again = patch(done.workflow, LORA)
        assert (again.workflow, again.added) == (done.workflow, [])

    def test_every_reader_of_the_loader_reads_the_lora(self, name: str) -> None:
        done = patch(workflow(name), LORA)
        graph = Workflow(done.workflow)
        for loader, node_id in zip(done.loaders, done.added, strict=True):
            for slot, kind in enumerate(NODES[graph.class_of(loader)].outputs):
                readers = {reader for reader, _ in graph.consumers((loader, slot))}
                assert readers <= {node_id} if kind in ("MODEL", "CLIP") else node_id not in readers

    def test_another_strength_changes_the_node_that_is_there(self, name: str) -> None:
        done = patch(golden(name), WorkflowLora(LORA.file, LORA.trigger_word, 0.5))
        [node] = [node for node in done.workflow.values() if node["inputs"].get("lora_name") == LORA.file]
        assert (done.added, len(done.strengths)) == ([], 1)
        assert {node["inputs"][key] for key in node["inputs"] if key.startswith("strength")} == {0.5}

    def test_a_second_lora_stands_beside_the_first(self, name: str) -> None:
        done = patch(golden(name), WorkflowLora("job_02.safetensors", "hushpuppy"))
        files = [node["inputs"]["lora_name"] for node in done.workflow.values() if node["class_type"] in LORA_LOADERS]
        assert {LORA.file, "job_02.safetensors"} <= set(files)
        assert len(done.added) == len(done.loaders) == 1


class TestLoaders:
    def test_refiners_are_left_alone_unless_they_are_named(self) -> None:
        assert patch(workflow("sdxl-refiner"), LORA).loaders == ["4"]
        both = patch(workflow("sdxl-refiner"), LORA, loaders=["4", "12"])
        assert (both.loaders, len(both.added)) == (["4", "12"], 2)
        # The refiner is known by what encodes its texts, whatever its file is called.
        assert patch(changed("sdxl-refiner", "12", ckpt_name="second.safetensors"), LORA).loaders == ["4"]
        with pytest.raises(WorkflowInvalid, match=r"node 5 is not a model loader .*; the workflow has: 4, 12"):
            patch(workflow("sdxl-refiner"), LORA, loaders=["5"])

    def test_both_models_of_a_merge(self) -> None:
        given = workflow("sd15")
        given["20"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}}
        given["21"] = {
            "class_type": "ModelMergeSimple",
            "inputs": {"model1": ["4", 0], "model2": ["20", 0], "ratio": 0.5},
        }
        given["3"]["inputs"]["model"] = ["21", 0]
        done = patch(given, LORA)
        assert done.loaders == ["4", "20"]
        # Nobody reads the second one's text encoder, so its node takes the model alone.
        assert [done.workflow[node_id]["class_type"] for node_id in done.added] == ["LoraLoader", "LoraLoaderModelOnly"]

    def test_a_custom_loader_that_the_server_describes(self) -> None:
        given = workflow("sd15")
        given["4"] = {"class_type": "MyLoader", "inputs": {"path": "x"}}
        info = {"MyLoader": {"output": ["MODEL", "CLIP", "VAE"]}}
        assert patch(given, LORA, Catalogue.of(info)).added == ["10"]
        # Without a description the names of inputs tell the model; the text encoder then keeps its own.
        done = patch(given, LORA)
        assert done.workflow["10"]["class_type"] == "LoraLoaderModelOnly"
        assert contains_word("sks dog", done.workflow["6"]["inputs"]["text"])

    def test_layers_of_a_text_encoder_that_has_a_loader_of_its_own(self) -> None:
        lora = replace(LORA, has_text_encoders=True)
        done = patch(workflow("z-image"), lora)
        (node_id,) = done.added
        assert done.workflow[node_id]["class_type"] == "LoraLoader"
        assert done.workflow[node_id]["inputs"]["clip"] == ["18", 0]
        assert done.workflow["6"]["inputs"]["clip"] == [node_id, 1]
        assert done.notes == []
        again = patch(done.workflow, replace(lora, strength=0.5))
        assert (again.added, again.notes) == ([], [])
        assert again.workflow[node_id]["inputs"]["strength_clip"] == 0.5

    def test_layers_of_one_of_two_text_encoders_are_left_out_with_a_note(self) -> None:
        given = workflow("z-image")
        given["50"] = copy.deepcopy(given["18"])
        given["51"] = copy.deepcopy(given["6"]) | {"inputs": {"text": "", "clip": ["50", 0]}}
        done = patch(given, replace(LORA, has_text_encoders=True))
        assert done.workflow[done.added[0]]["class_type"] == "LoraLoaderModelOnly"
        assert ["text encoder are not loaded" in note for note in done.notes] == [True]
        assert patch(given, LORA).notes == []

    def test_without_a_lora_only_prompt_and_seed_change(self) -> None:
        done = patch(workflow("sd15"), None, prompt="a mug", seed=5)
        assert done.workflow["6"]["inputs"]["text"] == "a mug"
        assert done.workflow["3"]["inputs"]["seed"] == 5
        assert set(done.workflow) == set(workflow("sd15"))


class TestPrompts:
    def test_a_prompt_that_says_the_word_stays(self) -> None:
        text = "Portrait of SKS Dog, in a park"
        assert patch(changed("sd15", "6", text=text), LORA).workflow["6"]["inputs"]["text"] == text
        near = patch(changed("sd15", "6", text="two sks dogs"), LORA).workflow["6"]["inputs"]["text"]
        assert near == "sks dog, two sks dogs"

    def test_an_empty_prompt_and_another_prompt(self) -> None:
        assert patch(changed("sd15", "6", text=""), LORA).workflow["6"]["inputs"]["text"] == "sks dog"
        done = patch(workflow("tangled"), LORA, prompt="on a boat")
        assert [done.workflow[node_id]["inputs"]["text"] for node_id in ("8", "9")] == ["sks dog, on a boat"] * 2

    def test_a_text_that_the_negative_prompt_shares_is_copied(self) -> None:
        done = patch(workflow("tangled"), LORA).workflow
        assert done["5"] == workflow("tangled")["5"]
        assert done["7"] == workflow("tangled")["7"]
        assert done[done["6"]["inputs"]["string_a"][0]]["inputs"]["value"] == "sks dog, sharp, detailed"

    def test_a_text_that_cannot_be_read_gets_the_word_put_before_it(self) -> None:
        given = changed("sd15", "6", text=["30", 0])
        given["30"] = {"class_type": "AskALanguageModel", "inputs": {"question": "what to draw?"}}
        done = patch(given, LORA).workflow
        [joined] = [node for node in done.values() if node["class_type"] == "StringConcatenate"]
        assert joined["inputs"] == {"string_a": "sks dog", "string_b": ["30", 0], "delimiter": ", "}
        again = patch(done, LORA).workflow
        assert again == done

    def test_the_negative_prompt_never_says_it(self) -> None:
        for name in NAMES:
            done = Workflow(patch(workflow(name), LORA).workflow)
            for node_id in done.nodes:
                link = done.link(node_id, "negative")
                if link and done.class_of(link[0]).startswith("CLIPTextEncode"):
                    texts = [value for value in done.inputs(link[0]).values() if isinstance(value, str)]
                    assert not any(contains_word("sks dog", text) for text in texts), name


EDITOR = {"last_node_id": 9, "nodes": [{"id": 4, "type": "CheckpointLoaderSimple"}], "links": []}
LOADER = {"4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}}}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (EDITOR, "format of ComfyUI's editor"),
        ([], "not a JSON object"),
        ({}, "not a JSON object"),
        ({"4": 5}, "node 4 of the workflow has no class_type"),
        ({"4": {"class_type": "X"}}, "node 4 of the workflow has no inputs"),
        (LOADER, "no model loader that leads to a sampler"),
        ({str(number): LOADER["4"] for number in range(5001)}, "5001 nodes"),
        (changed("sd15", "3", positive=["7", 5], model=["99", 0]), "no model loader"),
        (changed("sd15", "4", ckpt_name="sd_xl_refiner.safetensors"), "only refiners"),
        (changed("sd15", "3", positive="none"), "no model loader"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_patched_is_said(given: Any, why: str) -> None:
    with pytest.raises(WorkflowInvalid, match=why):
        patch(given, LORA)


def test_a_prompt_that_is_out_of_reach() -> None:
    given = workflow("sd15")
    given["6"] = {"class_type": "LoadConditioning", "inputs": {"file": "x"}}
    with pytest.raises(WorkflowInvalid, match="lead to no text"):
        patch(given, LORA)
    assert patch(given, WorkflowLora(LORA.file)).added == ["10"]  # without a word there is nothing to say


def test_loops_end() -> None:
    given = workflow("sd15")
    given["20"] = {"class_type": "FreeU_V2", "inputs": {"model": ["21", 0]}}
    given["21"] = {"class_type": "FreeU_V2", "inputs": {"model": ["20", 0]}}
    given["22"] = {"class_type": "ConditioningConcat", "inputs": {"conditioning_to": ["22", 0]}}
    given["3"]["inputs"] |= {"model": ["20", 0], "positive": ["22", 0]}
    with pytest.raises(WorkflowInvalid, match="no model loader"):
        patch(given, LORA)
    text = changed("sd15", "6", text=["30", 0])
    text["30"] = {"class_type": "StringConcatenate", "inputs": {"string_a": ["30", 0], "delimiter": ""}}
    patch(text, LORA)
