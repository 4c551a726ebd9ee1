"""Which cases of the large matrices run: a sample in `make test`, all of them in `make test-full`.

IMPRINT_TEST_SEED repeats a sample; pytest prints it in its header. IMPRINT_TEST_FULL=1 runs everything.
"""

import math
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeVar

import pytest

from tests.costs import function_of, recorded

T = TypeVar("T")
U = TypeVar("U")

FULL = os.environ.get("IMPRINT_TEST_FULL", "") not in ("", "0")
# Set for the processes of pytest-xdist too: all of them must collect the same tests.
SEED = int(os.environ.setdefault("IMPRINT_TEST_SEED", str(random.SystemRandom().randrange(1_000_000))))


def sample(cases: Iterable[T], count: int, name: str) -> list[T]:
    """`count` of the cases in their order, by the seed and by the `name` of the matrix; all of them in a full run."""
    given = list(cases)
    if FULL or count >= len(given):
        return given
    chosen = sorted(random.Random(f"{SEED} {name}").sample(range(len(given)), count))
    return [given[index] for index in chosen]


def paired(rows: Iterable[T], columns: Iterable[U], name: str) -> list[tuple[T, U]]:
    """Every row with one of the columns, by the seed and by the `name` of the matrix; with each in a full run."""
    given, choices = list(rows), list(columns)
    if FULL:
        return [(row, column) for row in given for column in choices]
    chance = random.Random(f"{SEED} {name}")
    return [(row, chance.choice(choices)) for row in given]


def left_out(items: Sequence[pytest.Item]) -> set[str]:
    """Ids of the items that a run of all tests leaves out, by the seed, and `make test-full` does not."""
    others = _other_databases(items)
    return others | _undrawn(items) | _other_cases([item for item in items if item.nodeid not in others])


def _other_databases(items: Sequence[pytest.Item]) -> set[str]:
    """All but one of each test that could run on several kinds of database.

    A test marked `both_databases` runs on each: what it tests is how they differ.
    """
    twins: defaultdict[str, list[str]] = defaultdict(list)
    for item in items:
        kind = item.callspec.params.get("address") if hasattr(item, "callspec") else None
        if kind is not None and item.get_closest_marker("both_databases") is None:
            twins[item.nodeid.replace(str(kind), "")].append(item.nodeid)
    chosen = {random.Random(f"{SEED} {name}").choice(each) for name, each in twins.items()}
    return {one for each in twins.values() for one in each} - chosen


def _undrawn(items: Sequence[pytest.Item]) -> set[str]:
    """Two thirds of the tests that are marked `drawn`: each costs ten seconds and more of several processes."""
    marked = [item.nodeid for item in items if item.get_closest_marker("drawn")]
    return set(marked) - set(sample(marked, _third(len(marked)), "drawn"))


def _other_cases(items: Sequence[pytest.Item]) -> set[str]:
    """Two thirds of the cases of each test function whose case costs more than a second; one at least stays."""
    costly = recorded()
    cases: defaultdict[str, list[str]] = defaultdict(list)
    for item in items:
        name = function_of(item.nodeid)
        if name in costly and not any(map(item.get_closest_marker, ("drawn", "both_databases", "every_case"))):
            cases[name].append(item.nodeid)
    return {one for name, each in cases.items() for one in set(each) - set(sample(each, _third(len(each)), name))}


def _third(count: int) -> int:
    return math.ceil(count / 3)
