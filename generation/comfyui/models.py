"""The models of a workflow: which nodes read them, and the loaders that they come from."""

from generation.comfyui.workflow import Link, Workflow

# The folder that a model loader's file is in, by the name of the input.
_FOLDERS = {"ckpt_name": "checkpoints", "unet_name": "diffusion_models", "model_name": "diffusion_models"}


def model_links(workflow: Workflow, node_id: str) -> list[Link]:
    """The model inputs of a node. For an unknown class, the names of the inputs decide."""
    found = []
    for name, link in workflow.links(node_id):
        kind = workflow.kind(link)
        if kind == "MODEL" or (kind is None and name.rstrip("0123456789_") in ("model", "unet")):
            found.append(link)
    return found


def model_sources(workflow: Workflow, node_id: str) -> set[Link]:
    """The loader outputs that a node's models come from, through LoRAs, merges and other nodes."""
    found: set[Link] = set()
    seen: set[Link] = set()
    open_ends = model_links(workflow, node_id)
    while open_ends:
        link = open_ends.pop()
        if link in seen:
            continue
        seen.add(link)
        before = model_links(workflow, link[0])
        open_ends += before
        if not before:
            found.add(link)
    return found


def model_files(workflow: Workflow, loaders: list[str]) -> list[tuple[str, str, str]]:
    """Node, folder and file of each of these loaders that names one, as the server calls them."""
    return [
        (node_id, folder, value)
        for node_id in loaders
        for name, folder in _FOLDERS.items()
        if isinstance(value := workflow.inputs(node_id).get(name), str)
    ]
