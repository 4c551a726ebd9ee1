"""Nodes and models that a workflow needs and the server lacks, with where to get them if the workflow says so.

A workflow in the editor's format names the package of each custom node, and the address of models. One in API format
names neither.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from core.errors import WorkflowInvalid
from generation.comfyui.text import one_line
from generation.comfyui.workflow import Workflow

_SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
_SHOWN = 10


def require_all(workflow: Workflow, object_info: Mapping[str, Any], given: Any, place: str) -> None:
    """Raises WorkflowInvalid, which names every node class and model file that the server does not have.

    given: the workflow as it came, in either format. object_info: the server's description of all its node classes.
    """
    packages, addresses = _sources(given)
    found: dict[str, str] = {}
    for node_id in workflow.nodes:
        name = workflow.class_of(node_id)
        if name not in object_info:
            where = packages.get(name)
            of = f" of the package {where}" if where else ""
            found[node_id] = f"the server has no node {one_line(name, 80)}{of}"
            continue
        for file in _absent_files(workflow.inputs(node_id), object_info[name]):
            where = addresses.get(file.replace("\\", "/").rsplit("/", 1)[-1])
            found[node_id] = f"the server has no file {one_line(file, 120)}" + (
                f": get it from {where}" if where else ""
            )
    if found:
        listed = "; ".join(f"node {node_id[:40]}: {text}" for node_id, text in list(found.items())[:_SHOWN])
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise WorkflowInvalid(f"{place} lacks what the workflow needs: {listed}{more}", {"nodes": found})


def _absent_files(inputs: Mapping[str, Any], info: Any) -> Iterator[str]:
    """The model files among the values of inputs that the server does not list."""
    groups = info.get("input") if isinstance(info, dict) else None
    for group in ("required", "optional"):
        described = groups.get(group) if isinstance(groups, dict) else None
        for name, about in (described if isinstance(described, dict) else {}).items():
            value, choices = inputs.get(name), _choices(about)
            if isinstance(value, str) and value.endswith(_SUFFIXES) and choices is not None and value not in choices:
                yield value


def _choices(about: Any) -> list[Any] | None:
    """The choices of an input, as older and newer servers describe them; None for other inputs."""
    if not isinstance(about, list) or not about:
        return None
    if isinstance(about[0], list):
        return about[0]
    options = about[1].get("options") if about[0] == "COMBO" and len(about) > 1 and isinstance(about[1], dict) else None
    return options if isinstance(options, list) else None


def _sources(given: Any) -> tuple[dict[str, str], dict[str, str]]:
    """The package of each node class, and the address of each model file, as far as the workflow says them."""
    packages: dict[str, str] = {}
    addresses: dict[str, str] = {}
    for part in _parts(given):
        nodes = part.get("nodes")
        held = [part, *(node for node in (nodes if isinstance(nodes, list) else []) if isinstance(node, dict))]
        for one in held:
            about = one.get("properties")
            about = about if isinstance(about, dict) else {}
            package = about.get("cnr_id") or about.get("aux_id")
            if isinstance(package, str) and isinstance(one.get("type"), str):
                packages[one["type"]] = one_line(package, 120)
            for models in (one.get("models"), about.get("models")):
                for model in models if isinstance(models, list) else []:
                    name, url = (model.get("name"), model.get("url")) if isinstance(model, dict) else (None, None)
                    if isinstance(name, str) and isinstance(url, str) and url.startswith("https://"):
                        addresses[name] = one_line(url)
    return packages, addresses


def _parts(given: Any) -> Iterator[dict[str, Any]]:
    """The workflow and its subgraphs."""
    if isinstance(given, dict):
        yield given
        definitions = given.get("definitions")
        subgraphs = definitions.get("subgraphs") if isinstance(definitions, dict) else None
        yield from (part for part in (subgraphs if isinstance(subgraphs, list) else []) if isinstance(part, dict))
