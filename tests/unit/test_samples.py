"""Which tests a run of everything leaves out, and what is recorded of their cost."""

import ast
import os
import runpy
from collections import Counter
from functools import cache
from types import SimpleNamespace
from typing import Any

import hypothesis.core
import pytest

from tests import samples
from tests.costs import merged, recorded
from tests.site import ROOT


@cache
def functions(path: str) -> set[str]:
    """The test functions of a file, with their class as pytest writes it."""
    tree = ast.parse((ROOT / path).read_text())
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return found | {
        f"{one.name}::{node.name}" for one in classes for node in one.body if isinstance(node, ast.FunctionDef)
    }


def test_every_recorded_function_is_there() -> None:
    places = [name.split("::", 1) for name in recorded()]
    assert [(path, name) for path, name in places if not (ROOT / path).is_file() or name not in functions(path)] == []


def test_a_record_is_the_mean_of_the_cases_and_forgets_what_has_become_cheap() -> None:
    before = {"a.py::test_dear": 9.0, "a.py::test_mended": 5.0, "a.py::test_elsewhere": 3.0}
    after = merged(before, {"a.py::test_dear": [6.0, 8.0], "a.py::test_mended": [0.2], "a.py::test_new": [2.0]})
    assert after == {"a.py::test_dear": 7.0, "a.py::test_elsewhere": 3.0, "a.py::test_new": 2.0}


def test_an_empty_seed_is_none_and_all_test_processes_get_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPRINT_TEST_SEED", "")
    chosen = runpy.run_path(samples.__file__)["SEED"]
    assert os.environ["IMPRINT_TEST_SEED"] == str(chosen)


def test_a_commit_has_the_same_examples_of_hypothesis_on_every_machine() -> None:
    assert hypothesis.core.global_force_seed is not None


def items(ids: list[str], *markers: str) -> list[Any]:
    return [SimpleNamespace(nodeid=one, get_closest_marker=lambda name: name in markers or None) for one in ids]


def test_a_quarter_of_the_cases_of_a_costly_function_run_and_at_least_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "FULL", False)
    monkeypatch.setattr(
        samples,
        "recorded",
        lambda: {"a.py::test_dear": 2.0, "a.py::test_one": 60.0, "a.py::test_kinds": 3.0, "a.py::test_whole": 2.0},
    )
    dear, cheap = [f"a.py::test_dear[{case}]" for case in range(7)], [f"a.py::test_cheap[{case}]" for case in range(7)]
    kinds = ["a.py::test_kinds[sqlite]", "a.py::test_kinds[postgresql]"]
    left_out: Counter[str] = Counter()
    for seed in range(400, 404):
        monkeypatch.setattr(samples, "SEED", seed)
        every = items([f"a.py::test_whole[{case}]" for case in range(7)], "every_case")
        others = samples.left_out([*items([*dear, *cheap, "a.py::test_one"]), *items(kinds, "both_databases"), *every])
        assert len(others) == 5
        left_out.update(others)
    assert set(left_out) == set(dear)
    assert max(left_out.values()) < 4, "each case runs in one of four consecutive commits"


def test_a_quarter_of_the_drawn_tests_run_and_each_within_four_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "FULL", False)
    given = items([f"a.py::test_{number}" for number in range(9)], "drawn")
    names, run = {item.nodeid for item in given}, set[str]()
    for seed in range(8, 12):
        monkeypatch.setattr(samples, "SEED", seed)
        run |= names - samples.left_out(given)
        assert len(samples.left_out(given)) == 6
    assert run == names


def test_two_matrices_of_one_test_meet_in_every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "FULL", False)
    met = set()
    for seed in range(200):
        monkeypatch.setattr(samples, "SEED", seed)
        met.add((*samples.sample(range(4), 1, "one"), *samples.sample("ab", 1, "other")))
    assert len(met) == 8
