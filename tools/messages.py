"""The messages that owners see, for the catalogues of the page.

An English message stands once, beside the code that says it: as a text, or as an f-string whose `{values}` are the
named values of the catalogues. This reads them from the source of the modules below. What concerns operators alone,
such as a base model that cannot be loaded, stays English: the page shows it under "Details", below the advice.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from core import errors

_ROOT = Path(errors.__file__).parent.parent
MODULES = (
    "core/picture_names.py",
    "credits/ledger.py",
    "jobs/admission/approvals.py",
    "jobs/admission/live.py",
    "jobs/captioning/asking.py",
    "jobs/captioning/review.py",
    "jobs/captioning/stage.py",
    "jobs/deletion/guard.py",
    "jobs/deletion/requests.py",
    "jobs/drawings/draw_step.py",
    "jobs/drawings/drawing_request.py",
    "jobs/drawings/drawing_transitions.py",
    "jobs/drawings/drawings.py",
    "jobs/lifecycle/repair.py",
    "jobs/lifecycle/transitions.py",
    "jobs/owners/accounts.py",
    "jobs/owners/limits.py",
    "jobs/owners/people.py",
    "jobs/owners/tokens.py",
    "jobs/owners/unusable_names.py",
    "jobs/requests/acceptance.py",
    "jobs/requests/installation.py",
    "jobs/requests/training_request.py",
    "jobs/results/delivery.py",
    "jobs/results/lora_files.py",
    "jobs/screening.py",
    "jobs/service.py",
    "jobs/stages/picture_source.py",
    "jobs/stages/preflight.py",
    "jobs/stages/stage_runner.py",
    "jobs/subjects/captions.py",
    "jobs/subjects/crops.py",
    "jobs/subjects/picture_masks.py",
    "jobs/subjects/picture_uploads.py",
    "jobs/subjects/picture_verdicts.py",
    "jobs/subjects/subject_pictures.py",
    "jobs/subjects/subject_settings.py",
    "storage/owners.py",
    "training/backends/encoded_dataset.py",
    "training/backends/meter.py",
    "training/data/decoding/decoder.py",
    "training/data/file_kinds.py",
    "training/data/folders/archives.py",
    "training/data/folders/caption_files.py",
    "training/data/folders/picture_folder.py",
    "training/data/folders/remarks.py",
    "training/data/folders/unpack_target.py",
    "training/data/masks.py",
    "training/data/pictures.py",
    "training/data/verdict.py",
    "training/memory_plan.py",
    "training/options.py",
    "training/spec.py",
    "training/lora/readers.py",
    "tasks/workers/fleet.py",
    "web/pages/**/*.py",
    "web/partial_files.py",
    "web/server/limits.py",
    "web/uploads.py",
)
# Never shown as they are: another worker takes over, or the page says that there is nothing at this address.
_NOT_SHOWN = frozenset({"NotFound", "KeyReused", "LeaseLost", "HandOver", "Cancelled", "WorkerLost"})
_ERRORS = frozenset({name for name in vars(errors) if name[0].isupper()} - _NOT_SHOWN | {"ValueError"})
_LISTS = frozenset({"notes", "faults", "reasons", "texts", "warnings", "missing", "problems"})


def collect() -> Iterator[str]:
    """Every message of the modules, with its values as `{name}`."""
    for pattern in MODULES:
        paths = sorted(_ROOT.glob(pattern))
        if not paths:
            raise FileNotFoundError(pattern)
        for path in paths:
            yield from _of_module(ast.parse(path.read_text()))


def _of_module(module: ast.Module) -> Iterator[str]:
    scopes = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    known = _assigned(module.body)
    for scope in scopes:
        named = known | _assigned(list(ast.walk(scope)))
        is_text = scope.returns is not None and "str" in ast.unparse(scope.returns)
        for node in ast.walk(scope):
            for said in _said(node, is_text):
                yield from (one.replace("{}", "{names}") for one in _templates(said, named))
    for name, values in known.items():
        if name.endswith(("_TEXTS", "_KINDS")):
            yield from (one for value in values for one in _templates(value, {}))


def _assigned(nodes: list[ast.AST] | list[ast.stmt]) -> dict[str, list[ast.expr]]:
    """What the names of a scope may be."""
    found: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, []).append(node.value)
    return found


def _said(node: ast.AST, is_text: bool) -> Iterator[ast.expr]:
    """The expressions of a statement that people read."""
    if isinstance(node, ast.Return) and is_text and node.value is not None:
        yield node.value
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
        if getattr(node.targets[0].value, "id", "") in _LISTS:
            yield node.value
    elif isinstance(node, ast.AugAssign) and _name(node.target) in _LISTS:
        yield node.value
    elif isinstance(node, ast.Call):
        called = _name(node.func)
        if called in _ERRORS | {"Remark"} and node.args:
            yield node.args[0]
        elif called in ("RequestRefused", "Refusal"):
            yield from node.args[1:]
        elif (called == "of" and node.args) or (
            called == "append" and isinstance(node.func, ast.Attribute) and _name(node.func.value) in _LISTS
        ):
            yield node.args[0]


def _name(node: ast.expr) -> str:
    """The last name in an expression: `limit` of `self.limit`."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _value_name(node: ast.expr) -> str:
    """What the catalogues call a value."""
    names = [_name(one) for one in ast.walk(node) if isinstance(one, ast.Name | ast.Attribute)]
    own = _name(node) or next((name for name in reversed(names) if name not in ("len", "str", "self")), "")
    return own.strip("_").lower() or "value"


def _templates(node: ast.expr, named: dict[str, list[ast.expr]]) -> Iterator[str]:
    """The sentences that an expression may be."""
    if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
        template = _template(node)
        is_short = template.startswith("{") and len(re.sub(r"\{\w+\}", "", template)) < 15  # it would fit too much
        if re.search(r"[a-z]{2,} |^[a-z]+ \{|^an? [A-Z]", template) and not is_short:
            yield template
        for part in getattr(node, "values", ()):
            if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name):
                yield from _templates(part.value, named)
    elif isinstance(node, ast.IfExp):
        yield from (*_templates(node.body, named), *_templates(node.orelse, named))
    elif isinstance(node, ast.BoolOp | ast.List | ast.Tuple):
        parts = node.values if isinstance(node, ast.BoolOp) else node.elts
        yield from (one for part in parts for one in _templates(part, named))
    elif isinstance(node, ast.ListComp):
        yield from _templates(node.elt, named)
    elif isinstance(node, ast.Dict):
        yield from (one for part in node.values for one in _templates(part, named))
    elif isinstance(node, ast.Name):
        others = {name: values for name, values in named.items() if name != node.id}
        yield from (one for value in named.get(node.id, ()) for one in _templates(value, others))


def _template(node: ast.expr) -> str:
    """A text with its values as `{name}`; nothing for what is no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.BinOp):
        return _template(node.left) + _template(node.right) if isinstance(node.op, ast.Add) else ""
    if not isinstance(node, ast.JoinedStr):
        return ""
    used: list[str] = []
    text = ""
    for part in node.values:
        if isinstance(part, ast.Constant):
            text += str(part.value)
        elif isinstance(part, ast.FormattedValue):
            name = _value_name(part.value)
            used.append(name)
            text += "{" + name + (str(used.count(name)) if used.count(name) > 1 else "") + "}"
    return text
