"""Find the texts of a workflow's positive prompts, from its samplers back.

A prompt may have several texts. The trigger word goes where the workflow marks it, else where it already is, else
into the first region of a prompt for regions (areas or masks), else into all of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from generation.comfyui.models import model_links
from generation.comfyui.prompts import TEXT_INPUTS, is_marked, says_word
from generation.comfyui.workflow import Link, NodeInput, Workflow

_GUIDANCE = {"BasicGuider": ("conditioning",), "DualCFGGuider": ("cond1", "cond2")}  # others: positive
_REGIONS = ("ConditioningSetArea", "ConditioningSetAreaPercentage", "ConditioningSetMask")


@dataclass(frozen=True)
class Prompts:
    """The inputs that hold the positive prompt, and those of its regions that are left alone."""

    inputs: list[NodeInput]
    left: list[NodeInput]  # what belongs to other regions


def positives(workflow: Workflow, node_id: str) -> list[Link]:
    """The positive conditioning of a sampler or guider; [] for other nodes."""
    if not model_links(workflow, node_id):
        return []
    names = _GUIDANCE.get(workflow.class_of(node_id), ("positive",))
    return [link for name in names if (link := workflow.link(node_id, name)) is not None]


def find_prompts(workflow: Workflow, samplers: Iterable[str], word: str) -> Prompts:
    """The positive prompts of the samplers; `word` is the trigger word."""
    chosen: dict[NodeInput, None] = {}
    left: dict[NodeInput, None] = {}
    for node_id in samplers:
        found = _texts_of(workflow, positives(workflow, node_id))
        ours = _choose(workflow, found, word)
        chosen |= dict.fromkeys(ours)
        left |= dict.fromkeys(text for text in found if text not in ours)
    return Prompts(list(chosen), [text for text in left if text not in chosen])


def _texts_of(workflow: Workflow, links: list[Link]) -> dict[NodeInput, bool]:
    """The texts that conditioning comes from, and whether each is of a region."""
    found: dict[NodeInput, bool] = {}
    seen: set[tuple[Link, bool]] = set()
    open_ends = [(link, False) for link in links]
    while open_ends:
        link, in_region = open_ends.pop(0)
        if (link, in_region) in seen:
            continue
        seen.add((link, in_region))
        texts = _texts(workflow, link[0])
        for text in texts:
            found[text] = found.get(text, False) or in_region
        if not texts:
            inside = in_region or _is_region(workflow, link[0])
            open_ends += [(source, inside) for source in _before(workflow, link)]
    return found


def _choose(workflow: Workflow, found: dict[NodeInput, bool], word: str) -> list[NodeInput]:
    if marked := [text for text in found if is_marked(workflow, text)]:
        return marked
    # A text encoder may have two texts, which are one prompt: so nodes are chosen, not texts.
    naming = {text[0] for text in found if word and says_word(workflow, text, word)}
    regions = [text[0] for text, in_region in found.items() if in_region]
    nodes = naming or set(regions[:1])
    return [text for text in found if text[0] in nodes] if nodes else list(found)


def _is_region(workflow: Workflow, node_id: str) -> bool:
    return workflow.class_of(node_id) in _REGIONS or {"conditioning", "mask"} <= workflow.inputs(node_id).keys()


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
