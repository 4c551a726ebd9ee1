"""The project's tests that need a GPU, one line each."""

import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.report import figure

_ROOT = Path(__file__).resolve().parents[2]


class _Lines:
    """A pytest plugin that writes each outcome as a figure."""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            why = str(report.longrepr)[-700:] if report.outcome == "failed" else ""
            figure("tests", test=report.nodeid, outcome=report.outcome, s=round(report.duration, 1), why=why)


def run() -> None:
    """Only the files that have such tests: others want packages that a GPU machine need not have."""
    files = [
        file for file in sorted((_ROOT / "tests" / "training").glob("test_*.py")) if "mark.gpu" in file.read_text()
    ]
    # Not the project's own configuration, which names options of plugins.
    asked = ["-q", "-m", "gpu", "-c", "/dev/null", "--rootdir", str(_ROOT), "-p", "no:cacheprovider"]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # nor what else the machine has
    code = pytest.main([*asked, *map(str, files)], [_Lines()])
    figure("tests", files=len(files), rc=int(code))
