"""Add the trigger word to the positive prompt of a workflow, once and nowhere else."""

import re
from collections.abc import Callable, Collection, Iterator

from generation.comfyui.workflow import NodeInput, Workflow

# The text inputs of known text encoders. For unknown ones the usual names apply.
TEXT_INPUTS = {
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeSDXL": ("text_g", "text_l"),
    "CLIPTextEncodeSDXLRefiner": ("text",),
    "CLIPTextEncodeSD3": ("clip_l", "clip_g", "t5xxl"),
    "CLIPTextEncodeFlux": ("clip_l", "t5xxl"),
    "CLIPTextEncodeLumina2": ("user_prompt",),
    "TextEncodeZImageOmni": ("prompt",),
}
MARK = "{trigger}"  # in a text: where the trigger word goes
_STRING_INPUTS = ("value", "string", "text", "string_a", "string_b", "prompt")  # of nodes that produce text


def add_trigger_word(
    workflow: Workflow, node_inputs: Collection[NodeInput], word: str, prompt: str | None = None
) -> None:
    """Add `word` to the texts at `node_inputs`, after replacing them with `prompt` if given. Never adds it twice.

    If a text also feeds another input, such as a negative prompt, the positive prompt gets a copy of its own.
    """
    for node_input in node_inputs:
        if prompt is not None:
            workflow.set(node_input, prompt)
        if word and not says_word(workflow, node_input, word):
            _change(workflow, node_input, lambda text: _with_word(text, word), frozenset(node_inputs))


def _with_word(text: str, word: str) -> str:
    if MARK in text:
        return text.replace(MARK, word)
    return f"{word}, {text}" if text.strip() else word


def says_word(workflow: Workflow, node_input: NodeInput, word: str) -> bool:
    """Whether a text that feeds the input says `word`."""
    return any(contains_word(word, text) for text in texts_at(workflow, node_input))


def is_marked(workflow: Workflow, node_input: NodeInput) -> bool:
    """Whether the trigger word belongs here: the text has `{trigger}`, or the node's title says "trigger"."""
    about = workflow.nodes[node_input[0]].get("_meta")
    title = about.get("title") if isinstance(about, dict) else None
    return contains_word("trigger", str(title)) or any(MARK in text for text in texts_at(workflow, node_input))


def contains_word(word: str, text: str) -> bool:
    """Whether `text` contains `word` as a whole word, ignoring case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def _parts(workflow: Workflow, node_id: str) -> list[NodeInput]:
    """The inputs of a node that produces text; [] if it has none of the known ones."""
    inputs = workflow.inputs(node_id)
    return [
        (node_id, name)
        for name in _STRING_INPUTS
        if isinstance(inputs.get(name), str) or workflow.link(node_id, name) is not None
    ]


def texts_at(workflow: Workflow, node_input: NodeInput, depth: int = 0) -> Iterator[str]:
    """The texts that feed an input, part by part."""
    value = workflow.inputs(node_input[0]).get(node_input[1])
    if isinstance(value, str):
        yield value
    elif (link := workflow.link(*node_input)) is not None and depth < 50:
        for part in _parts(workflow, link[0]):
            yield from texts_at(workflow, part, depth + 1)


def _change(
    workflow: Workflow, node_input: NodeInput, change: Callable[[str], str], ours: frozenset[NodeInput], depth: int = 0
) -> None:
    """Change the text of an input at its source, which may be several nodes away."""
    value = workflow.inputs(node_input[0]).get(node_input[1])
    if isinstance(value, str):
        workflow.set(node_input, change(value))
        return
    link = workflow.link(*node_input)
    parts = _parts(workflow, link[0]) if link and depth < 50 else []
    if link is None or not parts:
        _put_before(workflow, node_input, change(""))
        return
    if not _only_for(workflow, link[0], ours):
        copied = workflow.add(workflow.class_of(link[0]), workflow.inputs(link[0]), "prompt with the trigger word")
        workflow.set(node_input, (copied, link[1]))
        parts = [(copied, name) for _, name in parts]
    marked = next((part for part in parts if any(MARK in text for text in texts_at(workflow, part))), parts[0])
    _change(workflow, marked, change, ours | set(parts), depth + 1)


def _only_for(workflow: Workflow, node_id: str, ours: frozenset[NodeInput]) -> bool:
    """Whether a node's text feeds only the inputs in `ours`."""
    node_inputs = [
        (other, name) for other in workflow.nodes for name, link in workflow.links(other) if link[0] == node_id
    ]
    return all(node_input in ours for node_input in node_inputs)


def _put_before(workflow: Workflow, node_input: NodeInput, word: str) -> None:
    """Prepend `word` to a text from a node of an unknown kind."""
    value = workflow.inputs(node_input[0]).get(node_input[1])
    inputs = {"string_a": word, "string_b": value, "delimiter": ", "}
    workflow.set(node_input, (workflow.add("StringConcatenate", inputs, "trigger word"), 0))
