"""Replace a number of a workflow, such as the seed, in its own node or in the node that supplies it."""

from collections.abc import Collection

from generation.comfyui.workflow import NodeInput, Workflow

SEEDS = ("seed", "noise_seed")
_NUMBERS = (*SEEDS, "value", "int", "number", "Number")  # of nodes that give a number to others
_DEPTH = 50


def set_numbers(workflow: Workflow, names: Collection[str], number: int) -> list[str]:
    """Set every input with one of these names; returns the nodes that were changed.

    A linked input is followed to the number that it comes from. If that number also has another use, or cannot be
    found, the input itself gets `number` in place of its link.
    """
    ours = {
        (node_id, name)
        for node_id in workflow.nodes
        for name in names
        if type(workflow.inputs(node_id).get(name)) is int or workflow.link(node_id, name) is not None
    }
    changed: dict[str, None] = {}
    for node_input in sorted(ours):
        target = _source(workflow, node_input, ours) or node_input
        workflow.set(target, number)
        changed[target[0]] = None
    return list(changed)


def _source(workflow: Workflow, node_input: NodeInput, ours: set[NodeInput]) -> NodeInput | None:
    """The input of another node that the number of `node_input` comes from, if it feeds nothing but our inputs."""
    reads = set(ours)
    for _ in range(_DEPTH):
        link = workflow.link(*node_input)
        if link is None:
            return node_input if type(workflow.inputs(node_input[0]).get(node_input[1])) is int else None
        node_id = link[0]
        if any((other, name) not in reads for other, name in _readers(workflow, node_id)):
            return None
        given = [name for name in _NUMBERS if name in workflow.inputs(node_id)]
        if not given:
            return None
        node_input = (node_id, given[0])
        reads.add(node_input)
    return None


def _readers(workflow: Workflow, node_id: str) -> list[NodeInput]:
    return [(other, name) for other in workflow.nodes for name, link in workflow.links(other) if link[0] == node_id]
