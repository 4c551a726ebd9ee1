"""`POST /workflow/convert`: a workflow of the editor in API format, as a custom node of real servers does it.

In the editor's format a node has its links by number and the values of its other inputs in order. A node whose type is
the id of a subgraph stands for that subgraph's nodes; inside, -10 is where its inputs come from and -20 where its
outputs go. In API format the ids of those nodes are `57:3`.
"""

from dataclasses import dataclass
from typing import Any

from generation.comfyui.nodes import NODES

_INPUTS, _OUTPUTS = -10, -20
_WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN")
_MUTED = 2


@dataclass(frozen=True)
class _Scope:
    """The workflow itself, or one use of a subgraph."""

    graph: dict[str, Any]
    prefix: str = ""
    outer: "_Scope | None" = None
    instance: dict[str, Any] | None = None  # the node that stands for the subgraph

    def node(self, node_id: int) -> dict[str, Any]:
        found: dict[str, Any] = next(node for node in self.graph["nodes"] if node["id"] == node_id)
        return found

    def links(self) -> list[dict[str, Any]]:
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
        return [
            link if isinstance(link, dict) else dict(zip(names, link, strict=False)) for link in self.graph["links"]
        ]

    def link(self, number: int | None) -> dict[str, Any] | None:
        return next((link for link in self.links() if link["id"] == number), None)


def convert(workflow: dict[str, Any]) -> dict[str, Any]:
    """The nodes in API format. Raises KeyError, ValueError for a workflow that is none."""
    subgraphs = {one["id"]: one for one in workflow.get("definitions", {}).get("subgraphs", [])}
    made: dict[str, Any] = {}
    _expand(_Scope(workflow), subgraphs, made)
    return made


def _expand(scope: _Scope, subgraphs: dict[str, Any], made: dict[str, Any]) -> None:
    for node in scope.graph["nodes"]:
        if node.get("mode") == _MUTED or node["type"] in ("Note", "MarkdownNote"):
            continue
        if node["type"] in subgraphs:
            _expand(_Scope(subgraphs[node["type"]], f"{scope.prefix}{node['id']}:", scope, node), subgraphs, made)
            continue
        inputs = _widgets(node)
        for given in node.get("inputs", []):
            found = _source(scope, scope.link(given.get("link")), subgraphs)
            if found is not None:
                inputs[given["name"]] = found
        title = node.get("title") or node["type"]
        made[f"{scope.prefix}{node['id']}"] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}


def _widgets(node: dict[str, Any]) -> dict[str, Any]:
    """The values of the inputs that are no links, by name. After a seed the editor keeps what happens to it next."""
    values = list(node.get("widgets_values", []))
    kind = NODES.get(node["type"])
    made: dict[str, Any] = {}
    for name, wanted in {**kind.inputs, **kind.optional}.items() if kind is not None else ():
        plain = wanted[0] if isinstance(wanted, tuple) else wanted
        if values and (isinstance(plain, list) or plain.startswith("@") or plain in _WIDGETS):
            made[name] = values.pop(0)
            if values and values[0] in ("fixed", "increment", "decrement", "randomize"):
                values.pop(0)
    return made


def _source(scope: _Scope, link: dict[str, Any] | None, subgraphs: dict[str, Any]) -> Any:
    """Where a link comes from, in API format; None for none, and for an input of a subgraph that is not linked."""
    if link is None:
        return None
    if link["origin_id"] == _INPUTS:
        if scope.outer is None or scope.instance is None:
            raise ValueError("the workflow itself has no inputs")
        given = scope.instance["inputs"][link["origin_slot"]]
        return _source(scope.outer, scope.outer.link(given.get("link")), subgraphs)
    node = scope.node(link["origin_id"])
    if node["type"] not in subgraphs:
        return [f"{scope.prefix}{node['id']}", link["origin_slot"]]
    inside = _Scope(subgraphs[node["type"]], f"{scope.prefix}{node['id']}:", scope, node)
    ends = (one for one in inside.links() if (one["target_id"], one["target_slot"]) == (_OUTPUTS, link["origin_slot"]))
    return _source(inside, next(ends, None), subgraphs)
