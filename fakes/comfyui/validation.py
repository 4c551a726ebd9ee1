"""The checks of ComfyUI's `validate_prompt`, with its order and messages."""

from typing import Any

from fakes.comfyui.folders import ComfyUIFolders
from generation.comfyui.nodes import NODES, Kind, NodeClass

_NUMBERS: dict[str, type] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
_MOST_LISTED = 20

Refusal = dict[str, Any]


def validate(prompt: dict[str, Any], folders: ComfyUIFolders) -> tuple[Refusal | None, list[str], dict[str, Any]]:
    """The error (None if at least one output is valid), the valid outputs, and errors by node. Converts values."""
    for node_id, node in prompt.items():
        name = node.get("class_type")
        if name not in NODES:
            title = node.get("_meta", {}).get("title", name)
            error = _error("missing_node_type", f"Node '{title}' not found. The custom node may not be installed.",
                           f"Node ID '#{node_id}'", node_id=node_id, class_type=name, node_title=title)  # fmt: skip
            return error, [], {}
    outputs = [node_id for node_id, node in prompt.items() if NODES[node["class_type"]].saves]
    if not outputs:
        return _error("prompt_no_outputs", "Prompt has no outputs", ""), [], {}
    check, node_errors, good, details = _Check(prompt, folders), dict[str, Any](), list[str](), list[str]()
    for output in outputs:
        try:
            if check.node(output, []):
                good.append(output)
                continue
        except Exception as broken:  # noqa: BLE001 - as in the real one: prompts may cause any error
            check.found[output] = [
                _error("exception_during_validation", "Exception when validating node", str(broken),
                       exception_type=type(broken).__name__, traceback=[])
            ]  # fmt: skip
        details += [f"{reason['message']}: {reason['details']}" for reason in check.found.get(output, [])]
        for node_id, reasons in check.found.items():
            if reasons:
                errors = {"errors": reasons, "dependent_outputs": [], "class_type": prompt[node_id]["class_type"]}
                node_errors.setdefault(node_id, errors)["dependent_outputs"].append(output)
    if not good:
        error = _error("prompt_outputs_failed_validation", "Prompt outputs failed validation", "\n".join(details))
        return error, [], node_errors
    return None, good, node_errors


class _Check:
    """Validates the nodes of a prompt, each once."""

    def __init__(self, prompt: dict[str, Any], folders: ComfyUIFolders) -> None:
        self.prompt, self.folders = prompt, folders
        self.found: dict[str, list[Refusal]] = {}
        self.good: dict[str, bool] = {}

    def node(self, node_id: str, visiting: list[str]) -> bool:
        """Whether a node and all nodes that it depends on are valid."""
        if node_id in self.good:
            return self.good[node_id]
        if node_id in visiting:
            cycle = [*visiting[visiting.index(node_id) :], node_id]
            path = " -> ".join(f"{one} ({self.prompt[one]['class_type']})" for one in cycle)
            about = {"node_id": node_id, "cycle_nodes": list(dict.fromkeys(cycle))}
            self.found[node_id] = [_error("dependency_cycle", "Dependency cycle detected", path, **about)]
            self.good[node_id] = False
            return False
        inputs, kind = self.prompt[node_id]["inputs"], NODES[self.prompt[node_id]["class_type"]]
        reasons, good = list[Refusal](), True
        for name, wanted in {**kind.inputs, **kind.optional}.items():
            if name not in inputs:
                if name in kind.inputs:
                    reasons.append(_error("required_input_missing", "Required input is missing", name, input_name=name))
            elif isinstance(inputs[name], list):
                reasons += (found := self._link(name, inputs[name], wanted))
                good = bool(found or self._behind(name, inputs[name], [*visiting, node_id])) and good
            else:
                reasons += self._value(inputs, name, wanted)
        self.found[node_id] = [*self.found.get(node_id, []), *reasons]
        self.good[node_id] = good and not self.found[node_id]
        return self.good[node_id]

    def _behind(self, name: str, link: list[Any], visiting: list[str]) -> bool:
        try:
            return self.node(link[0], visiting)
        except Exception as error:  # noqa: BLE001 - as in the real one
            about = {"input_name": name, "exception_message": str(error), "exception_type": type(error).__name__}
            self.found[link[0]] = [
                _error("exception_during_inner_validation", "Exception when validating inner node", str(error),
                       **about, traceback=[], linked_node=link)
            ]  # fmt: skip
            self.good[link[0]] = False
            return False

    def _link(self, name: str, value: list[Any], wanted: Kind) -> list[Refusal]:
        about = {"input_name": name, "input_config": described(wanted, self.folders)}
        if len(value) != 2:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            return [_error("bad_linked_input", message, name, **about, received_value=value)]
        received = NODES[self.prompt[value[0]]["class_type"]].outputs[value[1]]
        kind = _type(wanted, self.folders)
        if received == kind:
            return []
        details = f"{name}, received_type({received}) mismatch input_type({kind})"
        return [
            _error("return_type_mismatch", "Return type mismatch between linked nodes", details, **about,
                   received_type=received, linked_node=value)
        ]  # fmt: skip

    def _value(self, inputs: dict[str, Any], name: str, wanted: Kind) -> list[Refusal]:
        kind, bounds = described(wanted, self.folders)
        value = inputs[name]
        about: dict[str, Any] = {"input_name": name, "input_config": (kind, bounds), "received_value": value}
        if isinstance(kind, str) and kind in _NUMBERS:
            try:
                value = inputs[name] = _NUMBERS[kind](value)
            except (TypeError, ValueError) as error:
                message = f"Failed to convert an input value to a {kind} value"
                details = f"{name}, {value}, {error}"
                return [_error("invalid_input_type", message, details, **about, exception_message=str(error))]
        if "min" in bounds and value < bounds["min"]:
            message = f"Value {value} smaller than min of {bounds['min']}"
            return [_error("value_smaller_than_min", message, name, **about)]
        if "max" in bounds and value > bounds["max"]:
            return [_error("value_bigger_than_max", f"Value {value} bigger than max of {bounds['max']}", name, **about)]
        if isinstance(kind, list) and value not in kind:
            many = len(kind) > _MOST_LISTED
            listed = f"(list of length {len(kind)})" if many else str(kind)
            about["input_config"] = None if many else (kind, bounds)
            return [_error("value_not_in_list", "Value not in list", f"{name}: {value!r} not in {listed}", **about)]
        return []


def described(wanted: Kind, folders: ComfyUIFolders) -> tuple[str | list[str], dict[str, Any]]:
    """An input as in `/object_info`: its type or choices, and its bounds."""
    if isinstance(wanted, tuple):
        return wanted
    return _type(wanted, folders), {}


def _type(wanted: Kind, folders: ComfyUIFolders) -> str | list[str]:
    if isinstance(wanted, tuple):
        return wanted[0]
    if isinstance(wanted, str) and wanted.startswith("@"):
        return folders.listed(wanted[1:])
    return wanted


def object_info(name: str, node: NodeClass, folders: ComfyUIFolders) -> dict[str, Any]:
    """A node class as in `/object_info`."""
    groups = {"required": node.inputs, "optional": node.optional}
    return {
        "input": {
            group: {key: list(described(wanted, folders)) for key, wanted in inputs.items()}
            for group, inputs in groups.items()
            if inputs or group == "required"
        },
        "input_order": {group: list(inputs) for group, inputs in groups.items() if inputs or group == "required"},
        "output": list(node.outputs),
        "output_is_list": [False] * len(node.outputs),
        "output_name": list(node.outputs),
        "name": name,
        "display_name": name,
        "description": "",
        "python_module": "nodes",
        "category": "fake",
        "output_node": node.saves,
    }


def _error(kind: str, message: str, details: str, **extra: Any) -> Refusal:
    return {"type": kind, "message": message, "details": details, "extra_info": extra}
