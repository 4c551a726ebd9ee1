"""A workflow in ComfyUI's API format: nodes by id, whose inputs are values or links to outputs of other nodes."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from core.errors import WorkflowInvalid
from generation.comfyui.nodes import Catalogue

Link = tuple[str, int]  # a node's id, and the index of an output
NodeInput = tuple[str, str]  # a node's id, and the name of an input

MAX_NODES = 5000


class Workflow:
    """A copy of a workflow, which may be changed."""

    def __init__(self, given: Any, catalogue: Catalogue | None = None) -> None:
        """Raises WorkflowInvalid if `given` is not in API format."""
        self.nodes: dict[str, dict[str, Any]] = copy.deepcopy(_read(given))
        self.catalogue = catalogue or Catalogue()
        self._take_out_reroutes()

    # ---- reading ----

    def class_of(self, node_id: str) -> str:
        return str(self.nodes[node_id]["class_type"])

    def inputs(self, node_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.nodes[node_id]["inputs"]
        return found

    def link(self, node_id: str, name: str) -> Link | None:
        """The output that an input is linked to; None for a value, a missing input or a broken link."""
        value = self.inputs(node_id).get(name)
        if not is_link(value) or value[0] not in self.nodes:
            return None
        return value[0], value[1]

    def links(self, node_id: str) -> Iterator[tuple[str, Link]]:
        """The inputs that are linked to other nodes."""
        for name in self.inputs(node_id):
            if (link := self.link(node_id, name)) is not None:
                yield name, link

    def consumers(self, link: Link) -> list[NodeInput]:
        return [(node_id, name) for node_id in self.nodes for name, source in self.links(node_id) if source == link]

    def kind(self, link: Link) -> str | None:
        """The type of an output; None if its class is unknown."""
        outputs = self.catalogue.outputs(self.class_of(link[0]))
        return outputs[link[1]] if outputs is not None and 0 <= link[1] < len(outputs) else None

    # ---- changing ----

    def add(self, class_type: str, inputs: Mapping[str, Any], title: str) -> str:
        """Add a node under the next free number; returns its id. API exports use numbers; some tools need them."""
        numbers = [int(node_id) for node_id in self.nodes if node_id.isdecimal()]
        node_id = str(max(numbers, default=0) + 1)
        self.nodes[node_id] = {"class_type": class_type, "inputs": dict(inputs), "_meta": {"title": title}}
        return node_id

    def set(self, node_input: NodeInput, value: Any) -> None:
        self.inputs(node_input[0])[node_input[1]] = list(value) if isinstance(value, tuple) else value

    def _take_out_reroutes(self) -> None:
        """Remove reroutes: they exist only in the editor, but some exporters leave them in. Servers reject them."""
        for node_id in [node_id for node_id in self.nodes if self.class_of(node_id) == "Reroute"]:
            sources = [source for _, source in self.links(node_id)]
            if len(sources) == 1 and sources[0][0] != node_id:
                for node_input in self.consumers((node_id, 0)):
                    self.set(node_input, sources[0])
                del self.nodes[node_id]


def is_link(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int


def is_of_editor(given: Any) -> bool:
    """Whether a workflow is in the format in which ComfyUI's editor saves it."""
    return isinstance(given, dict) and isinstance(given.get("nodes"), list)


def _read(given: Any) -> dict[str, dict[str, Any]]:
    if isinstance(given, dict) and isinstance(given.get("prompt"), dict) and "class_type" not in given["prompt"]:
        given = given["prompt"]  # the body of POST /prompt
    if not isinstance(given, dict) or not given:
        raise WorkflowInvalid("the workflow is not a JSON object of nodes")
    if is_of_editor(given):
        raise WorkflowInvalid(
            "the workflow is in the format of ComfyUI's editor: export it in API format with Workflow > Export (API), "
            'or install the custom node "Workflow to API Converter Endpoint" on the server'
        )
    if len(given) > MAX_NODES:
        raise WorkflowInvalid(f"the workflow has {len(given)} nodes; at most {MAX_NODES} are accepted")
    for node_id, node in given.items():
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            raise WorkflowInvalid(
                f"node {str(node_id)[:40]} of the workflow has no class_type: it is not in API format"
            )
        if not isinstance(node.get("inputs"), dict):
            raise WorkflowInvalid(f"node {str(node_id)[:40]} of the workflow has no inputs: it is not in API format")
    return given
