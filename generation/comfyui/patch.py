"""Add a LoRA to a workflow: a loader node after each model loader, and the trigger word in the prompt.

The node comes directly after the model's loader, before other LoRAs: weight patches add up, so their order does not
matter, and every branch of the graph starts there. Refiners are left alone, because their layers differ from those of
the base model that the LoRA was trained on.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from core.errors import WorkflowInvalid
from generation.comfyui.nodes import Catalogue
from generation.comfyui.prompts import TEXT_INPUTS, add_trigger_word
from generation.comfyui.workflow import Link, NodeInput, Workflow

LORA_LOADERS = ("LoraLoader", "LoraLoaderModelOnly")
_GUIDANCE = {"BasicGuider": ("conditioning",), "DualCFGGuider": ("cond1", "cond2")}  # others: positive
_SEEDS = ("seed", "noise_seed")


@dataclass(frozen=True)
class WorkflowLora:
    """The LoRA to add. `file` is its name on the server; it was trained for `strength` 1.0."""

    file: str
    trigger_word: str = ""
    strength: float = 1.0


@dataclass(frozen=True)
class Patched:
    """The patched workflow, and what was changed."""

    workflow: dict[str, Any]
    loaders: list[str]  # the loader nodes that the LoRA follows
    added: list[str]  # new nodes; empty if the workflow already had the LoRA
    texts: list[str]  # nodes that hold the positive prompt


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
    replace those of the workflow. Raises WorkflowInvalid if the workflow is not in API format, or has no model loader
    or no prompt that can be reached.
    """
    workflow = Workflow(given, catalogue)
    samplers = {node_id: _sources(workflow, node_id) for node_id in workflow.nodes if _positives(workflow, node_id)}
    chosen = _choose(workflow, samplers, loaders)
    added = [node_id for source in chosen if (node_id := _insert(workflow, source, lora)) is not None] if lora else []
    node_inputs = _prompt_inputs(
        workflow, [node_id for node_id, found in samplers.items() if not found.isdisjoint(chosen)]
    )
    word = lora.trigger_word if lora else ""
    if (word or prompt is not None) and not node_inputs:
        raise WorkflowInvalid("the positive prompts of the workflow's samplers lead to no text")
    add_trigger_word(workflow, node_inputs, word, prompt)
    if seed is not None:
        _reseed(workflow, seed)
    return Patched(
        workflow.nodes,
        [source[0] for source in chosen],
        added,
        list(dict.fromkeys(node_id for node_id, _ in node_inputs)),
    )


# ---- models -----------------------------------------------------------------------------------------------------


def _models(workflow: Workflow, node_id: str) -> list[Link]:
    """The model inputs of a node. For an unknown class, the names of the inputs decide."""
    found = []
    for name, link in workflow.links(node_id):
        kind = workflow.kind(link)
        if kind == "MODEL" or (kind is None and name.rstrip("0123456789_") in ("model", "unet")):
            found.append(link)
    return found


def _sources(workflow: Workflow, node_id: str) -> set[Link]:
    """The loader outputs that a node's models come from, through LoRAs, merges and other nodes."""
    found: set[Link] = set()
    seen: set[Link] = set()
    open_ends = _models(workflow, node_id)
    while open_ends:
        link = open_ends.pop()
        if link in seen:
            continue
        seen.add(link)
        before = _models(workflow, link[0])
        open_ends += before
        if not before:
            found.add(link)
    return found


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


def _insert(workflow: Workflow, model: Link, lora: WorkflowLora) -> str | None:
    """Insert the LoRA after a loader; returns the new node. If it is there already, only set its strength."""
    there = [
        node_id
        for node_id in workflow.nodes
        if workflow.class_of(node_id) in LORA_LOADERS
        and workflow.inputs(node_id).get("lora_name") == lora.file
        and model in _sources(workflow, node_id)
    ]
    for node_id in there:
        for name in ("strength_model", "strength_clip"):
            if name in workflow.inputs(node_id):
                workflow.set((node_id, name), lora.strength)
    if there:
        return None
    outputs = workflow.catalogue.outputs(workflow.class_of(model[0])) or ()
    clip = (model[0], outputs.index("CLIP")) if "CLIP" in outputs else None
    reads_model, reads_clip = workflow.consumers(model), workflow.consumers(clip) if clip else []
    title = f"LoRA {lora.file}"
    if clip and reads_clip:
        inputs: dict[str, Any] = {"model": list(model), "clip": list(clip), "lora_name": lora.file}
        strengths = {"strength_model": lora.strength, "strength_clip": lora.strength}
        node_id = workflow.add("LoraLoader", inputs | strengths, title)
    else:  # the text encoder has its own loader, and Imprint trains no text encoder
        inputs = {"model": list(model), "lora_name": lora.file, "strength_model": lora.strength}
        node_id = workflow.add("LoraLoaderModelOnly", inputs, title)
    for node_input in reads_model:
        workflow.set(node_input, (node_id, 0))
    for node_input in reads_clip:
        workflow.set(node_input, (node_id, 1))
    return node_id


# ---- prompts ----------------------------------------------------------------------------------------------------


def _positives(workflow: Workflow, node_id: str) -> list[Link]:
    """The positive conditioning of a sampler or guider; [] for other nodes."""
    if not _models(workflow, node_id):
        return []
    names = _GUIDANCE.get(workflow.class_of(node_id), ("positive",))
    return [link for name in names if (link := workflow.link(node_id, name)) is not None]


def _prompt_inputs(workflow: Workflow, samplers: list[str]) -> list[NodeInput]:
    """The inputs that hold the positive prompts of the samplers."""
    found: dict[NodeInput, None] = {}
    seen: set[Link] = set()
    open_ends = [link for node_id in samplers for link in _positives(workflow, node_id)]
    while open_ends:
        link = open_ends.pop(0)
        if link in seen:
            continue
        seen.add(link)
        texts = _texts(workflow, link[0])
        found |= dict.fromkeys(texts)
        if not texts:
            open_ends += _before(workflow, link)
    return list(found)


def _texts(workflow: Workflow, node_id: str) -> list[NodeInput]:
    """The text inputs of a text encoder; [] for other nodes."""
    named = TEXT_INPUTS.get(workflow.class_of(node_id))
    reads_clip = any(
        workflow.kind(link) == "CLIP" or (workflow.kind(link) is None and name == "clip")
        for name, link in workflow.links(node_id)
    )
    if named is None and not reads_clip:
        return []
    inputs = workflow.inputs(node_id)
    names = named or ("text", "prompt", "text_g", "text_l")
    return [(node_id, name) for name in names if isinstance(inputs.get(name), str) or workflow.link(node_id, name)]


def _before(workflow: Workflow, link: Link) -> list[Link]:
    """The conditioning inputs that an output depends on."""
    node_id, slot = link
    name = workflow.class_of(node_id)
    links = dict(workflow.links(node_id))
    if name == "ConditioningZeroOut":
        return []  # its text has no effect
    if "positive" in links and "negative" in links:  # such as ControlNet nodes: two inputs, two outputs
        return [links["positive" if slot == 0 else "negative"]]
    if name == "ConditioningConcat" and "conditioning_to" in links:
        return [links["conditioning_to"]]  # one prompt in two parts: the trigger word goes into the first
    return [
        source
        for name, source in links.items()
        if workflow.kind(source) == "CONDITIONING" or (workflow.kind(source) is None and name.startswith("cond"))
    ]


def _reseed(workflow: Workflow, seed: int) -> None:
    for node_id in workflow.nodes:
        for name in _SEEDS:
            if type(workflow.inputs(node_id).get(name)) is int:
                workflow.set((node_id, name), seed)


def _order(link: Link) -> tuple[int, str, int]:
    return (int(link[0]) if link[0].isdecimal() else 1 << 62, link[0], link[1])
