"""Rules that import-linter's contracts cannot state: no cycles between modules, no private names of other modules."""

import ast
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "cli", "core", "credits", "demo", "fakes", "generation", "jobs", "notifications", "storage", "tasks",
    "training", "web",
)  # fmt: skip


def cycles(graph: grimp.ImportGraph) -> list[list[str]]:
    """The shortest cycle through each module that is in one. Imports inside functions and for type checks count."""
    found = []
    for module in sorted(graph.modules):
        for imported in graph.find_modules_directly_imported_by(module):
            if back := graph.find_shortest_chain(imported, module):
                found.append([module, *back])
    return found


def private_names(source: str) -> Iterator[str]:
    """Names with an underscore that a module takes from another of ours: `from x import _y`, or `x._y`."""
    tree = ast.parse(source)
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or str(node.module).partition(".")[0] in PACKAGES):
            modules |= {alias.asname or alias.name for alias in node.names}
            yield from (f"from {node.module} import {one.name}" for one in node.names if _is_private(one.name))
        elif isinstance(node, ast.Import):
            named = [alias for alias in node.names if alias.name.partition(".")[0] in PACKAGES]
            modules |= {alias.asname or alias.name for alias in named}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and ast.unparse(node.value) in modules:
            yield ast.unparse(node)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_no_two_modules_import_each_other() -> None:
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    assert len(graph.modules) > 200
    assert cycles(graph) == []


def test_a_cycle_is_found() -> None:
    graph = grimp.ImportGraph()
    for module in ("a", "b", "c", "d"):
        graph.add_module(module)
    for importer, imported in (("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")):
        graph.add_import(importer=importer, imported=imported)
    assert cycles(graph) == [["a", "b", "c", "a"], ["b", "c", "a", "b"], ["c", "a", "b", "c"]]


def test_no_module_uses_a_private_name_of_another() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 200
    used = {str(path.relative_to(ROOT)): list(private_names(path.read_text(encoding="utf-8"))) for path in files}
    assert {path: names for path, names in used.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from core.ids import _ALPHABET", "from core.ids import _ALPHABET"),
        ("from core import ids\nids._ALPHABET", "ids._ALPHABET"),
        ("from core import ids as made\nmade._ALPHABET", "made._ALPHABET"),
        ("import core.ids\ncore.ids._ALPHABET", "core.ids._ALPHABET"),
        ("from .ids import _ALPHABET", "from ids import _ALPHABET"),
    ],
)
def test_a_private_name_is_found(source: str, name: str) -> None:
    assert list(private_names(source)) == [name]
    assert list(private_names("from core import ids\nids.new_id('job')\nself._x\nids.__doc__")) == []
