"""Writes the Kubernetes files of every family that workers train from those of sd15, which are written by hand.

A family's deployment differs from that of sd15 in its name and in what its weights need of the machine.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from training.families.record import Family
from training.families.registry import FAMILIES, trained_here

_MASTER = "sd15"
# Memory that a pod asks for and may use at most, and its disk, in GiB, by the largest part that training loads (GB).
_MACHINES = ((4, "8", "24", "100"), (7, "16", "48", "100"), (16, "24", "64", "100"), (20, "32", "96", "100"))
_LARGEST = ("48", "128", "200")


def files(folder: Path, docs: Path) -> Iterator[tuple[Path, str]]:
    """Each file that names families, with what it should contain. folder: of the Kubernetes files."""
    names = trained_here()
    master = (folder / f"train-{_MASTER}.yaml").read_text(encoding="utf-8")
    for name in names:
        yield folder / f"train-{name}.yaml", _deployment(master, FAMILIES[name])
    kustomization = folder / "kustomization.yaml"
    listed = "".join(f"  - train-{name}.yaml\n" for name in names)
    yield kustomization, re.sub(r"(  - train-\S+\.yaml\n)+", listed, kustomization.read_text(encoding="utf-8"))
    scaling = folder / "scaling.yaml"
    yield scaling, _scaling(scaling.read_text(encoding="utf-8"), names)
    page = docs / "deploy" / "kubernetes.md"
    row = "| " + ", ".join(f"`train-{name}`" for name in names) + " |"
    yield page, re.sub(r"\| `train-sd15`[^|]*\|", row, page.read_text(encoding="utf-8"))


def _deployment(master: str, family: Family) -> str:
    if family.name == _MASTER:
        return master
    sizes = family.sizes
    largest = 0.0 if sizes is None else max(2 * sizes.parameters, sizes.encoders) / 1e9
    asked, most, disk = next((machine[1:] for machine in _MACHINES if largest < machine[0]), _LARGEST)
    text = re.sub(rf"\b{_MASTER}\b", family.name, master)
    text = re.sub(r'(requests: \{cpu: "4", memory: )\d+', rf"\g<1>{asked}", text)
    text = re.sub(r"(limits: \{memory: )\d+", rf"\g<1>{most}", text)
    return re.sub(r"(storage: )\d+", rf"\g<1>{disk}", text)


def _scaling(text: str, names: list[str]) -> str:
    """A document for each family; one that trains one job at a time gets a pod for each job."""
    parts = text.split("---\n")
    first = next(number for number, part in enumerate(parts) if f"name: train-{_MASTER}\n" in part)
    others = [part for part in parts[:first] if "kind: ScaledObject" not in part]
    made = []
    for name in names:
        one = re.sub(rf"\b{_MASTER}\b", name, parts[first].rstrip("\n") + "\n")
        made.append(one if FAMILIES[name].shares_steps else re.sub(r'((QueryValue|listLength): )"8"', r'\g<1>"1"', one))
    return "---\n".join([*others, *made])
