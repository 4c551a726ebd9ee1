"""Add a LoRA to a workflow: a loader node after each model loader, and the trigger word in the prompt.

The node comes directly after the model's loader, before other LoRAs: weight patches add up, so their order does not
matter, and every branch of the graph starts there. Refiners are left alone, because their layers differ from those of
the base model that the LoRA was trained on.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from core.errors import WorkflowInvalid
from generation.comfyui.models import model_sources
from generation.comfyui.nodes import Catalogue
from generation.comfyui.overrides import SEEDS, set_numbers
from generation.comfyui.positive import find_prompts, positives
from generation.comfyui.prompts import add_trigger_word, texts_at
from generation.comfyui.workflow import Link, Workflow

LORA_LOADERS = ("LoraLoader", "LoraLoaderModelOnly")


@dataclass(frozen=True)
class WorkflowLora:
    """The LoRA to add. `file` is its name on the server; it was trained for `strength` 1.0."""

    file: str
    trigger_word: str = ""
    strength: float = 1.0
    has_text_encoders: bool = False  # whether it changes text encoders too


@dataclass(frozen=True)
class Patched:
    """The patched workflow, and what was changed."""

    workflow: dict[str, Any]
    loaders: list[str]  # the loader nodes that the LoRA follows
    added: list[str]  # new nodes; empty if the workflow already had the LoRA
    texts: list[str]  # nodes that hold the positive prompt
    prompted: list[str] = field(default_factory=list)  # of these, those whose text was changed
    strengths: list[str] = field(default_factory=list)  # nodes that load the LoRA, with the strength asked for
    seeds: list[str] = field(default_factory=list)  # nodes whose seed was set
    notes: list[str] = field(default_factory=list)  # what a person should know of the result


def patch(
    given: Any,
    lora: WorkflowLora | None,
    catalogue: Catalogue | None = None,
    *,
    prompt: str | None = None,
    seed: int | None = None,
    loaders: Collection[str] = (),
) -> Patched:
    """Add a LoRA to a workflow in API format. Patching twice changes only the strength.

    loaders: ids of the model loaders to patch; by default all that lead to a sampler, except refiners. prompt, seed:
    replace those of the workflow. Raises WorkflowInvalid if the workflow is not in API format, has no model loader or
    no prompt that can be reached, or if nothing in it takes the prompt or the seed.
    """
    workflow = Workflow(given, catalogue)
    samplers = {node_id: model_sources(workflow, node_id) for node_id in workflow.nodes if positives(workflow, node_id)}
    chosen = _choose(workflow, samplers, loaders)
    added = [node_id for source in chosen if (node_id := _insert(workflow, source, lora)) is not None] if lora else []
    word = lora.trigger_word if lora else ""
    prompts = find_prompts(workflow, [one for one, found in samplers.items() if not found.isdisjoint(chosen)], word)
    if (word or prompt is not None) and not prompts.inputs:
        raise WorkflowInvalid("the positive prompts of the workflow's samplers lead to no text")
    before = {text: list(texts_at(workflow, text)) for text in prompts.inputs}
    add_trigger_word(workflow, prompts.inputs, word, prompt)
    prompted = [text[0] for text, held in before.items() if list(texts_at(workflow, text)) != held]
    seeds = set_numbers(workflow, SEEDS, seed) if seed is not None else []
    if seed is not None and not seeds:
        raise WorkflowInvalid(f"the workflow has no seed that can be set: no node has an input {' or '.join(SEEDS)}")
    texts = list(dict.fromkeys(node_id for node_id, _ in prompts.inputs))
    strengths = [node_id for node_id in workflow.nodes if lora and _is_lora(workflow, node_id, lora.file)]
    return Patched(
        workflow.nodes,
        [source[0] for source in chosen],
        added,
        texts,
        list(dict.fromkeys(prompted)),
        strengths,
        seeds,
        [
            *_region_notes(texts, [node_id for node_id, _ in prompts.left], word or prompt),
            *_text_encoder_notes(workflow, lora),
        ],
    )


def _region_notes(texts: list[str], left: list[str], changed: str | None) -> list[str]:
    if not left or not changed:
        return []
    others = ", ".join(dict.fromkeys(left))
    return [
        f"the prompt has several parts: the trigger word and the prompt go into node {', '.join(texts)} only, not into "
        f'{others}. To choose another, write {{trigger}} into its text, or "trigger" into its title'
    ]


def _text_encoder_notes(workflow: Workflow, lora: WorkflowLora | None) -> list[str]:
    if lora is None or not lora.has_text_encoders:
        return []
    nodes = [node_id for node_id in workflow.nodes if _is_lora(workflow, node_id, lora.file)]
    if any(workflow.link(node_id, "clip") for node_id in nodes):
        return []
    return [
        "the LoRA's layers of the text encoder are not loaded, because the workflow does not say which text encoder is "
        "this model's: load the LoRA with LoraLoader in the workflow, between that text encoder and the prompts"
    ]


# ---- models -----------------------------------------------------------------------------------------------------


def _choose(workflow: Workflow, samplers: dict[str, set[Link]], wanted: Collection[str]) -> list[Link]:
    leading = sorted(set().union(*samplers.values()), key=_order)
    if missing := sorted(set(wanted) - {node_id for node_id, _ in leading}):
        known = ", ".join(node_id for node_id, _ in leading) or "none"
        raise WorkflowInvalid(
            f"node {missing[0][:40]} is not a model loader that leads to a sampler; the workflow has: {known}"
        )
    if wanted:
        return [source for source in leading if source[0] in wanted]
    chosen = [source for source in leading if not _is_refiner(workflow, source[0])]
    if not chosen:
        what = "only refiners" if leading else "no model loader that leads to a sampler"
        raise WorkflowInvalid(f"the workflow has {what}: there is no place for the LoRA")
    return chosen


def _is_refiner(workflow: Workflow, loader: str) -> bool:
    names = [value for value in workflow.inputs(loader).values() if isinstance(value, str)]
    if any("refiner" in name.lower() for name in names):
        return True
    encoders = [node_id for node_id in workflow.nodes if workflow.class_of(node_id) == "CLIPTextEncodeSDXLRefiner"]
    return any((link := workflow.link(node_id, "clip")) is not None and link[0] == loader for node_id in encoders)


def _is_lora(workflow: Workflow, node_id: str, file: str) -> bool:
    return workflow.class_of(node_id) in LORA_LOADERS and workflow.inputs(node_id).get("lora_name") == file


def _insert(workflow: Workflow, model: Link, lora: WorkflowLora) -> str | None:
    """Insert the LoRA after a loader; returns the new node. If it is there already, only set its strength."""
    there = [
        node_id
        for node_id in workflow.nodes
        if _is_lora(workflow, node_id, lora.file) and model in model_sources(workflow, node_id)
    ]
    for node_id in there:
        for name in ("strength_model", "strength_clip"):
            if name in workflow.inputs(node_id):
                workflow.set((node_id, name), lora.strength)
    if there:
        return None
    outputs = workflow.catalogue.outputs(workflow.class_of(model[0])) or ()
    clip = (model[0], outputs.index("CLIP")) if "CLIP" in outputs else None
    if clip is None and lora.has_text_encoders:
        clip = _only_text_encoder(workflow, lora)
    reads_model, reads_clip = workflow.consumers(model), workflow.consumers(clip) if clip else []
    title = f"LoRA {lora.file}"
    if clip and reads_clip:
        inputs: dict[str, Any] = {"model": list(model), "clip": list(clip), "lora_name": lora.file}
        strengths = {"strength_model": lora.strength, "strength_clip": lora.strength}
        node_id = workflow.add("LoraLoader", inputs | strengths, title)
    else:  # the text encoder has a loader of its own, and the LoRA does not change it
        inputs = {"model": list(model), "lora_name": lora.file, "strength_model": lora.strength}
        node_id = workflow.add("LoraLoaderModelOnly", inputs, title)
    for node_input in reads_model:
        workflow.set(node_input, (node_id, 0))
    for node_input in reads_clip:
        workflow.set(node_input, (node_id, 1))
    return node_id


def _only_text_encoder(workflow: Workflow, lora: WorkflowLora) -> Link | None:
    """The text encoder that a loader of its own loads; None if there are several, or if it has the LoRA already."""
    read = {link for node_id in workflow.nodes for _, link in workflow.links(node_id)}
    loaded = [link for link in read if workflow.kind(link) == "CLIP" and workflow.link(link[0], "clip") is None]
    if len(loaded) != 1:
        return None
    has_it = any(_is_lora(workflow, node_id, lora.file) for node_id, _ in workflow.consumers(loaded[0]))
    return None if has_it else loaded[0]


def _order(link: Link) -> tuple[int, str, int]:
    return (int(link[0]) if link[0].isdecimal() else 1 << 62, link[0], link[1])
