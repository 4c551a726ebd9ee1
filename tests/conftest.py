"""What holds for every test, wherever it runs."""

import gc
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.costs import function_of, recorded
from tests.once import made_once
from tests.samples import FULL, SEED, left_out

try:
    import hypothesis
except ImportError:  # a GPU machine that runs the tests marked `gpu` has only what trains
    hypothesis = None  # type: ignore[assignment]

# Tests say themselves which settings they mean; what the developer's shell or machine has set is not theirs, but for
# IMPRINT_TEST_*, which is meant for them.
for _name in [name for name in os.environ if name.startswith("IMPRINT_") and not name.startswith("IMPRINT_TEST_")]:
    del os.environ[_name]

# Several test processes share the cores: more threads in each would only wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if hypothesis is not None:
    # A busy machine is no finding.
    hypothesis.settings.register_profile("imprint", deadline=None, print_blob=True)
    hypothesis.settings.load_profile("imprint")


WHOLE = "IMPRINT_TEST_WHOLE"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Tell the processes of pytest-xdist whether somebody named tests, or runs them all."""
    if hypothesis is not None and config.getoption("--hypothesis-seed") is None:
        # A commit has the same examples on every machine, as it has the same cases.
        config.option.hypothesis_seed = SEED
    if not hasattr(config, "workerinput"):
        named = config.args_source is not pytest.Config.ArgsSource.TESTPATHS or config.getoption("keyword")
        os.environ[WHOLE] = "0" if named else "1"
        if _has_room_in_memory():
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_IN_MEMORY))


# Databases and servers write and delete files all the time: on a disk, a quarter of a test's CPU and of its time.
_IN_MEMORY = Path("/dev/shm")  # noqa: S108 - pytest makes a private folder in it
_NEEDED_BYTES = 10 << 30  # a run of everything leaves 3 GB, and as much is written and deleted


def _has_room_in_memory() -> bool:
    if not os.access(_IN_MEMORY, os.W_OK):
        return False
    in_memory = os.statvfs(_IN_MEMORY)
    available = int(re.findall(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())[0]) << 10
    return min(in_memory.f_bavail * in_memory.f_frsize, available, _container_limit()) >= _NEEDED_BYTES


def _container_limit() -> float:
    """What a container may use at most: /proc/meminfo is about the whole machine."""
    limits = [Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory/memory.limit_in_bytes")]
    values = [limit.read_text().strip() for limit in limits if limit.is_file()]
    return min((float(value) for value in values if value.isdecimal()), default=math.inf)


def pytest_report_header() -> str:
    if FULL:
        return "all cases of every matrix"
    return f"sampled cases: IMPRINT_TEST_SEED={SEED} repeats them, and {SEED + 1} has others"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The costliest files come first, so that a run does not end with one long test on one core. Tests that need a GPU
    skip where there is none, and only they import torch here.

    A run of all tests leaves some out (tests/samples.py); where tests are named, all of them run.
    """
    if os.environ[WHOLE] == "1" and not FULL:
        others = left_out(items)
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in others])
        items[:] = [item for item in items if item.nodeid not in others]
    recorded_s = recorded()
    costs: Counter[str] = Counter()
    for item in items:
        costs[_file_of(item)] += recorded_s.get(function_of(item.nodeid), 0)
    items.sort(key=lambda item: costs[_file_of(item)], reverse=True)
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if not needing:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _file_of(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def pytest_collection_finish() -> None:
    """Exempt what collection made from garbage collection: five thousand tests and torch cost half a second a pass."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _service() -> Iterator[None]:
    """The service acts in each test: a command that a test runs in its own process names the user for good."""
    from core.actor import acting

    with acting():
        yield


@pytest.fixture(scope="session", autouse=True)
def _temporary_files() -> Iterator[None]:
    """A temporary folder of this run's own, in which killed programs may leave what they like."""
    with tempfile.TemporaryDirectory(prefix="imprint-tests-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")) as folder:
        Path(folder).chmod(0o711)  # PostgreSQL runs as a user of its own
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        yield
        tempfile.tempdir = None


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base model, made once for all test processes."""
    from tests.site import make_base

    return made_once(tmp_path_factory, "tiny-sd15", make_base)
