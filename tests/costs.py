"""What tests cost: CPU seconds of each function, recorded in tests/costs.json, and the plugin that records them.

`make test-costs` counts each test with all its processes, also those that are killed or reparented, by a control group
(cgroup version 2) of the test process; it needs root. Unlike `--durations`, it says the same on a busy machine.
"""

import json
import os
from collections import defaultdict
from collections.abc import Generator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).with_name("costs.json")
# Functions whose case costs less are not recorded: there are thousands, and all of them together cost little.
LEAST_S = 1.0


def function_of(node_id: str) -> str:
    """The id of a test without its parameters."""
    return node_id.partition("[")[0]


@cache
def recorded() -> dict[str, float]:
    """CPU seconds of a case of each test function that costs more than a second."""
    costs: dict[str, float] = json.loads(FILE.read_text())
    return costs


def merged(before: dict[str, float], measured: dict[str, list[float]]) -> dict[str, float]:
    """The recorded costs with those of a run: the mean of a function's cases. What did not run keeps its figure."""
    means = {name: round(sum(each) / len(each), 1) for name, each in measured.items()}
    return {name: cost for name, cost in sorted({**before, **means}.items()) if cost >= LEAST_S}


class Recorder:
    """Puts the cost of each test into its last report, where pytest-xdist carries it to the process that writes."""

    def __init__(self) -> None:
        root = _control_groups()
        self._group = root / f"imprint-tests-{os.getpid()}"
        self._group.mkdir()
        (self._group / "cgroup.procs").write_text(str(os.getpid()))
        self._begun = 0.0

    def _used_s(self) -> float:
        used = (self._group / "cpu.stat").read_text().split()
        return int(used[used.index("usage_usec") + 1]) / 1e6

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, Any, Any]:
        self._begun = self._used_s()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.when == "teardown":
            report.user_properties.append(("cpu_s", self._used_s() - self._begun))
        return report

    def pytest_unconfigure(self) -> None:
        (self._group.parent / "cgroup.procs").write_text(str(os.getpid()))
        with suppress(OSError):  # a process that outlives the run is still in it
            self._group.rmdir()


class Writer:
    """Collects the costs of all test processes, and writes them when the run ends."""

    def __init__(self) -> None:
        self._measured: defaultdict[str, list[float]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self._measured[function_of(report.nodeid)] += [
                float(str(v)) for k, v in report.user_properties if k == "cpu_s"
            ]

    def pytest_sessionfinish(self) -> None:
        FILE.write_text(json.dumps(merged(recorded(), self._measured), indent=0) + "\n")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        count = sum(map(len, self._measured.values()))
        total = sum(sum(each) for each in self._measured.values())
        terminalreporter.write_line(f"{count} tests cost {total:.0f} CPU s; tests/costs.json is written")


def _control_groups() -> Path:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2" and os.access(place, os.W_OK):
            return Path(place)
    raise pytest.UsageError("Costs are counted by control groups of version 2: run as root where cgroup2 is mounted.")


def pytest_configure(config: pytest.Config) -> None:
    """Loaded by `-p tests.costs`: each process counts, and the one that others report to writes."""
    if not config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(), "imprint-costs-recorder")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Writer(), "imprint-costs-writer")
