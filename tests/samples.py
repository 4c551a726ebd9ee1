"""Which cases of the large matrices run: a sample in `make test`, all of them in `make test-full`.

The sample follows from IMPRINT_TEST_SEED, which pytest prints in its header; without it, from the number of commits. So
a commit has one sample, on whichever machine, and the samples of the commits after it have what it leaves out.
IMPRINT_TEST_FULL=1 runs everything.
"""

import math
import os
import random
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from tests.costs import function_of, recorded

T = TypeVar("T")
U = TypeVar("U")

FULL = os.environ.get("IMPRINT_TEST_FULL", "") not in ("", "0")
_ROOT = Path(__file__).parents[1]
_PARTS = 4  # the share of costly cases that run is one in so many


def _commits() -> int:
    """The number of commits; of a copy without git, a number by chance."""
    asked = ["git", "-C", str(_ROOT), "rev-list", "--count", "HEAD"]
    try:
        return int(subprocess.run(asked, capture_output=True, check=True, text=True).stdout)
    except (OSError, subprocess.CalledProcessError):
        return random.SystemRandom().randrange(1_000_000)


SEED = int(os.environ.get("IMPRINT_TEST_SEED") or _commits())
# For the processes of pytest-xdist: all of them must collect the same tests.
os.environ["IMPRINT_TEST_SEED"] = str(SEED)


def sample(cases: Iterable[T], count: int, name: str) -> list[T]:
    """`count` of the cases in their order, by the seed and by the `name` of the matrix; all of them in a full run.

    As many consecutive seeds as it takes have every case: their cases are dealt from one shuffled pack, then from the
    next, so that two matrices of one test do not keep step.
    """
    given = list(cases)
    if FULL or count >= len(given):
        return given
    pack, turn = divmod(SEED, math.ceil(len(given) / count))
    shuffled = random.Random(f"{pack} {name}").sample(range(len(given)), len(given))
    return [given[index] for index in sorted((shuffled * 2)[turn * count : (turn + 1) * count])]


def paired(rows: Iterable[T], columns: Iterable[U], name: str) -> list[tuple[T, U]]:
    """Every row with one of the columns, by the seed and by the `name` of the matrix; with each in a full run."""
    choices = list(columns)
    return [(row, column) for n, row in enumerate(rows) for column in sample(choices, 1, f"{name} {n}")]


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
    return {one for name, each in twins.items() for one in set(each) - set(sample(each, 1, name))}


def _undrawn(items: Sequence[pytest.Item]) -> set[str]:
    """Most of the tests that are marked `drawn`: each costs ten seconds and more of several processes."""
    marked = [item.nodeid for item in items if item.get_closest_marker("drawn")]
    return set(marked) - set(sample(marked, math.ceil(len(marked) / _PARTS), "drawn"))


def _other_cases(items: Sequence[pytest.Item]) -> set[str]:
    """Most cases of each test function whose case costs more than a second; one at least stays."""
    costly = recorded()
    cases: defaultdict[str, list[str]] = defaultdict(list)
    for item in items:
        name = function_of(item.nodeid)
        if name in costly and not any(map(item.get_closest_marker, ("drawn", "both_databases", "every_case"))):
            cases[name].append(item.nodeid)
    return {
        one
        for name, each in cases.items()
        for one in set(each) - set(sample(each, math.ceil(len(each) / _PARTS), name))
    }
