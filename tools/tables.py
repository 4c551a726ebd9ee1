"""Writes tables of the code into the docs: settings, failure codes, base models, layers, and prices. Writes the queues
of each kind of worker into the docs and the files in `deploy/`, and the files of Kubernetes for each family
(`kubernetes_files.py`).

`python tools/tables.py` writes them. `--check` only compares, and exits with 1 if a file is not up to date.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import kubernetes_files
import numpy as np
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from core.advice import ADVICE
from core.errors import FailureCode, OutOfMemory
from core.settings import Settings
from tasks.workers.kinds import KINDS, WorkerKind
from training import memory_plan
from training.backends.ai_toolkit import cards
from training.families.record import BaseModel, Family, Sizes
from training.families.registry import FAMILIES
from training.lora.file import serialize_lora
from training.lora.readers import readers
from training.lora.reading import read_lora
from training.spec import TrainSpec

_ROOT = Path(__file__).resolve().parent.parent
_DOCS = _ROOT / "docs"
_BEGIN, _END = "<!-- begin: written by tools/tables.py -->\n", "<!-- end -->"
_BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}


def settings() -> str:
    """One table for each section of the classes, in their order."""
    sections: dict[str, list[str]] = {"the home folder": []}
    present = "the home folder"
    groups = [group for group in Settings.__bases__ if group is not BaseSettings]
    for line in "".join(map(inspect.getsource, (Settings, *groups))).splitlines():
        if heading := re.fullmatch(r"    # ---- (.+) ----", line):
            present = heading[1]
            sections[present] = []
        elif (field := re.match(r"    (\w+): ", line)) and field[1] in Settings.model_fields:
            sections[present].append(_row(field[1], Settings.model_fields[field[1]]))
    return "".join(
        f"\n### {name[0].upper()}{name[1:]}\n\n| variable | type | default | what it is |\n| --- | --- | --- | --- |\n"
        + "".join(rows)
        for name, rows in sections.items()
    )


def _row(name: str, field: FieldInfo) -> str:
    variable = f"{Settings.model_config['env_prefix']}{name.upper()}"
    return f"| `{variable}` | {_kind(field)} | {_default(field.default)} | {field.description} |\n"


def _kind(field: FieldInfo) -> str:
    name = _name(field.annotation)
    bounds = [
        text.format(getattr(bound, key))
        for bound in field.metadata
        for key, text in _BOUNDS.items()
        if getattr(bound, key, None) is not None
    ]
    return ", ".join([name, *bounds])


def _name(kind: Any) -> str:
    """A type as a reader who sets an environment variable would name it."""
    words = {str: "text", int: "whole number", float: "number", Path: "path", SecretStr: "secret text"}
    if kind is bool:
        return "`true`, `false`"
    if kind in words:
        return words[kind]
    origin, arguments = get_origin(kind), [part for part in get_args(kind) if part is not type(None)]
    if origin is Annotated:
        return _name(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is list:
        return f"JSON list of {_name(arguments[0])}"
    if origin is dict:
        return f"JSON object of {_name(arguments[1])}"
    return " or ".join(_name(part) for part in arguments)


def _default(value: Any) -> str:
    if value is None or value in ([], {}):
        return "unset" if value is None else "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def failures() -> str:
    """A row for each failure code: what happened, and what the owner of the training can do."""
    rows = [f"| `{code}` | {ADVICE[code].what} | {ADVICE[code].do} |\n" for code in FailureCode]
    return "".join(["\n| code | what happened | what the owner can do |\n| --- | --- | --- |\n", *rows])


def base_models() -> str:
    """A row for each base model; then, for each family, how its default recipe fits into cards."""
    head = "| base model | licence | weights | smallest card | 1,000 steps | credits | recipe | form | read by |\n"
    rows = [_base_model(family, base) for family in FAMILIES.values() for base in family.base_models]
    cards = "".join(f" {gib} GB |" for gib in _CARDS)
    memory = [
        f"| {name} |" + "".join(f" {_fits(family, gib)} |" for gib in _CARDS) + "\n"
        for name, family in FAMILIES.items()
        if family.sizes is not None
    ]
    return "".join(
        [
            *("\n", head, "| --- " * 9, "|\n", *rows),
            *("\n## Memory\n\n", _MEMORY, f"| family |{cards}\n", "| --- " * (1 + len(_CARDS)), "|\n", *memory),
        ]
    )


_CARDS = (8, 12, 16, 24, 48, 80)
_MEMORY = (
    "How a training with the default recipe runs on a card, from the plan that a worker makes before the first step:\n"
    "in 16 bits, with gradient checkpointing, or also with the base in 8 or 4 bits. The plan counts shapes; only some\n"
    "of it was measured on cards ([benchmarks](benchmarks.md)).\n\n"
)


def _base_model(family: Family, base: BaseModel) -> str:
    recipe = family.recipe
    weights = "" if family.sizes is None else f"{2 * family.sizes.parameters / 2**30:.1f} GB"
    billions = family.toolkit.billions if family.toolkit is not None else None
    if family.sizes is None and billions is not None:
        weights = f"{2e9 * billions[0] / 2**30:.1f} GB"
    card = next((f"{gib} GB" for gib in _CARDS if family.sizes is not None and _fits(family, gib) != "no"), "rented")
    if family.sizes is None and (needed := cards.usual_gib(family.name)):
        card = f"rented, {next((gib for gib in _CARDS if gib >= needed), 80)} GB"
    minutes = f"{family.seconds_per_step * 1000 / 60:.0f} min"
    told = f"rank {recipe['rank']}, alpha {recipe['alpha']:g}, {recipe.get('optimizer', 'adamw')} "
    told += f"{recipe['learning_rate']:g}, {recipe['resolution']} px, {recipe['epochs']} epochs"
    licence = f"{base.licence}{f': {base.terms}' if base.terms else ''}{' (gated)' if base.is_gated else ''}"
    pairs = {
        name: (np.ones((2, width), np.float32), np.ones((width, 2), np.float32))
        for name, width in family.lora.example.items()
    }
    found = readers(read_lora(serialize_lora(family.name, pairs, 1.0, {"imprint_family": family.name})))
    read_by = ", ".join(program for program, how in found.items() if how == "whole") or "as ai-toolkit writes it"
    return (
        f"| `{base.name}` ({base.title}) | {licence} | {weights} | {card} | {minutes} | {family.price.credits} "
        f"| {told} | {family.lora.form} | {read_by} |\n"
    )


def _fits(family: Family, gib: int) -> str:
    spec = TrainSpec.model_validate({"base_model": "x/y", "family": family.name, "trigger_word": "x", "seed": 0})
    try:
        plan = memory_plan.plan(spec, gib * memory_plan.GIB)
    except (OutOfMemory, AssertionError):
        return "no"
    bits = "" if plan.quantisation == "none" else f", {plan.quantisation.removesuffix('bit')} bits"
    return ("checkpointing" if plan.checkpointing else "16 bits") + bits


def layers() -> str:
    """A row for each family: the layers and parameters of a LoRA of rank 4, by what it is trained on."""
    known = {name: family.sizes for name, family in FAMILIES.items() if family.sizes is not None}
    targets = list(dict.fromkeys(target for sizes in known.values() for target in sizes.modules))
    head = "".join(f" `{target}` |" for target in targets)
    rows = [f"| {name} |" + "".join(f" {_layers(sizes, one)} |" for one in targets) for name, sizes in known.items()]
    return "\n".join([f"\n| family, at rank 4 |{head}", "| --- " * (1 + len(targets)) + "|", *rows, ""])


def _layers(sizes: Sizes, targets: str) -> str:
    if targets not in sizes.modules:
        return "none"
    return f"{sizes.modules[targets]} layers, {4 * sizes.lora[targets] / 1e6:.2f} M parameters"


def prices() -> str:
    """A row for each family: its price."""
    rows = [f"| {name} | {one.price.credits} | {one.price.resolution} |\n" for name, one in FAMILIES.items()]
    return "".join(["\n| family | rate, credits per 1,000 steps | native resolution |\n| --- | --- | --- |\n", *rows])


TABLES: dict[str, Callable[[], str]] = {
    "settings.md": settings,
    "task.md": prices,
    "recipe.md": layers,
    "troubleshooting.md": failures,
    "base-models.md": base_models,
}


def written(page: str, table: str) -> str:
    """`page` with the current table."""
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise SystemExit("a page has no markers for its table")
    return f"{before}{begin}{table}\n{end}{after}"


# A worker's name and queues, as commands in shell, systemd, compose and Kubernetes have them; and its row in a table.
_COMMAND = re.compile(r"""(-n[ ",]+(io|fetch|train|draw)(?:-%i)?@%{1,2}h[\s",]+-Q[\s",']+)([\w.,-]+)""")
_ROW = re.compile(r"^(\| worker `(io|fetch|train|draw)@…` \| .* \| )(.*)( \|)$", re.MULTILINE)


def with_queues(text: str, family: str | None = None) -> str:
    """`text` with the queues of each worker that it starts or lists; `family`: of workers for this family alone."""

    def command(found: re.Match[str]) -> str:
        names = KINDS[found[2]].queues
        chosen = names if family is None else [name for name in names if name.endswith(f".{family}")]
        return found[1] + ",".join(chosen)

    return _ROW.sub(lambda found: found[1] + _listed(KINDS[found[2]]) + found[4], _COMMAND.sub(command, text))


def _listed(kind: WorkerKind) -> str:
    drawn = KINDS["draw"].queues if kind.name == "train" else ()
    names = ", ".join(f"`{name}`" for name in kind.queues if name not in drawn)
    return names + (f"; on a GPU {', '.join(f'`{name}`' for name in drawn)}" if drawn else "")


def _family_of(path: Path) -> str | None:
    """The family that a deployment of Kubernetes trains."""
    if path.parent.name != "kubernetes" or not path.stem.startswith("train-"):
        return None
    return path.stem.removeprefix("train-")


def current() -> Iterator[tuple[Path, str]]:
    """Each file with what it should contain."""
    for name, table in TABLES.items():
        yield _DOCS / name, written((_DOCS / name).read_text(encoding="utf-8"), table())
    made = dict(kubernetes_files.files(_ROOT / "deploy" / "kubernetes", _DOCS))
    deployments = {path for suffix in ("*.yml", "*.yaml", "*.service") for path in (_ROOT / "deploy").rglob(suffix)}
    for path in sorted({_DOCS / "operations.md", *deployments, *made}):
        text = made.get(path) or path.read_text(encoding="utf-8")
        yield path, with_queues(text, _family_of(path))


def main() -> int:
    outdated = [
        (path, text) for path, text in current() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if "--check" in sys.argv[1:]:
        names = ", ".join(path.relative_to(_ROOT).as_posix() for path, _ in outdated)
        if names:
            print(f"{names}: not up to date; run python tools/tables.py", file=sys.stderr)
        return 1 if names else 0
    for path, text in outdated:
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
