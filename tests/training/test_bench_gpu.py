"""`python -m benchmarks.gpu`, at tiny size on the CPU: what each part measures, its limits, and what it may import.

`make test` draws three of the parts, `make test-full` runs all. All together cover every function of the three words,
but not the starting of `exact`'s children, `requests` (which does the same as `jobs` in a process of its own), and
what only a card has: recording, memory that ends, `pytest -m gpu` itself.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import bench, exactness
from benchmarks.gpu.__main__ import main, run_parts
from benchmarks.gpu.parts import PARTS, WORDS, Bench, chosen
from tests.samples import sample
from tests.site import ROOT
from training.families.registry import trained_here

TINY = {
    "KIT_DEVICE": "cpu", "KIT_SIZE": "tiny", "KIT_DIAL": "0.04", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE",
}  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of base models and trainings that all parts share, as they do on a card's machine."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def tiny(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The environment of a tiny run; the file of its results."""
    for name, value in {**TINY, "OUT": str(tmp_path / "out"), "KIT_WORK": str(work)}.items():
        monkeypatch.setenv(name, value)
    bench.setup.cache_clear()
    yield tmp_path / "out" / "results.jsonl"
    bench.setup.cache_clear()


def lines(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text().splitlines()]


def test_every_word_fits_its_time() -> None:
    """All parts are in one word; each part has half a minute and more, and a word that is late cuts its last ones."""
    assert sorted(name for names in WORDS.values() for name in names) == sorted(PARTS)
    assert [part.name for part in chosen("third")] == ["compile"]
    assert chosen("sdxl") == [PARTS["sdxl"]]
    assert all(part.limit_s >= 30 for part in PARTS.values())


# `tests` is pytest itself, with nothing to run here; `exact` starts a dozen processes, and has a test below.
MEASURING = [name for name in PARTS if name not in ("tests", "exact", "requests")]


@pytest.mark.parametrize("name", sample(MEASURING, 3, "parts of bench-gpu"))
def test_a_part_measures(tiny: Path, name: str) -> None:
    PARTS[name].run()
    found = lines(tiny)
    assert [line for line in found if "error" in line or line.get("failed")] == []
    parts = {line["part"] for line in found}
    assert parts >= {
        "smoke": {"smoke", "agree"}, "single": {"ceilings", "plain script", "plain cached", "ours recorded", "forward"},
        "ladder": {"ladder", "idle slots"}, "steps": {"record", "slots", "live"}, "jobs": {"encoders", "jobs"},
        "zimage": {"z-image"},
    }.get(name, {name})  # fmt: skip
    if name == "smoke":
        assert max(line["gradient"] for line in found if line.get("precision") == "float32") < 1e-5
        assert max(line["gradient"] for line in found if line.get("precision") == "bfloat16") < 0.1
    if name == "steps":
        by_part = {line["part"]: line for line in found}
        assert by_part["record"]["bit_equal"] is True
        assert by_part["slots"]["other_neighbours_bit_equal"] is True
        assert max(line["of_the_change"] for line in found if "of_the_change" in line) < 1e-2
    if name == "profile":
        assert "PyTorch's operations" in (tiny.parent / "profile.txt").read_text()


def test_the_same_file_after_a_cut(tiny: Path) -> None:
    """What the children of `exact` do, here in one process; `compare` starts each in a process of its own."""
    whole, cut, rest = (exactness.child("sd15@64", name) for name in ("a", "b-cut", "b-rest"))
    assert rest["sha256"] == whole["sha256"]
    assert 0 < rest["from"] == cut["cut_at"] < 40


class Command(Bench):
    """A part that is any command."""

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-c", self.about]


def test_a_part_that_hangs_or_fails_loses_nothing_of_the_others(tiny: Path) -> None:
    hangs = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    parts = [
        Command("hangs", 2, hangs + "time.sleep(60)"),
        Command("dies", 20, "raise SystemExit(3)"),
        Command("works", 20, "from benchmarks.gpu.report import figure; figure('works', ms=1)"),
    ]
    begun = time.monotonic()
    assert run_parts(parts, 60) == 1
    assert time.monotonic() - begun < 20
    exit_codes = {line["name"]: line["rc"] for line in lines(tiny) if line["part"] == "run"}
    assert exit_codes == {"hangs": 124, "dies": 3, "works": 0}
    assert any(line["part"] == "works" for line in lines(tiny))


def test_no_part_begins_without_time(tiny: Path) -> None:
    assert run_parts([Command("late", 100, "pass")], 15) == 1
    assert lines(tiny)[-1]["skipped"] == "no time is left"


def test_an_error_within_a_part_is_a_line(tiny: Path) -> None:
    with bench.measuring("broken", jobs=2):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    [line] = lines(tiny)
    assert (line["part"], line["jobs"], line["error"][:12]) == ("broken", 2, "RuntimeError")


def test_a_word_that_is_none(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fourth"])
    assert "no such word or part: fourth" in capsys.readouterr().err


# What a bare GPU machine has, or what travels to it as wheels.
MACHINE = (
    "torch transformers accelerate safetensors numpy pillow prometheus-client pytest "
    "diffusers importlib-metadata peft pydantic pydantic-core annotated-types typing-inspection typing-extensions "
    "pydantic-settings python-dotenv"
)

_BLOCKED = """
import importlib.machinery, importlib.metadata as metadata, os, re, sys

def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()

allowed, todo = set(), sys.argv[1].split()
while todo:
    name = normal(todo.pop())
    if name not in allowed:
        allowed.add(name)
        try:
            wanted = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        todo += [re.match(r"[A-Za-z0-9._-]+", one).group() for one in wanted if "extra ==" not in one]
owners = metadata.packages_distributions()

class Machine(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition(".")[0]
        found = [] if os.path.isdir(top) else owners.get(top, [])  # the project itself is there
        if found and not any(normal(one) in allowed for one in found):
            return None
        return super().find_spec(name, path, target)

sys.meta_path[:] = [Machine if one is importlib.machinery.PathFinder else one for one in sys.meta_path]
try:
    import celery
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("nothing is blocked")
import pkgutil
import benchmarks.gpu
for module in pkgutil.iter_modules(benchmarks.gpu.__path__, "benchmarks.gpu."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
from benchmarks.gpu.correctness import smoke
from benchmarks.gpu.parts import PARTS
smoke()
PARTS["tests"].run()
"""


@pytest.mark.drawn
def test_it_runs_with_what_a_gpu_machine_has(tiny: Path) -> None:
    """No Celery, SQLModel, Redis, FastAPI or rich, nor anything else but what trains: all of it is blocked."""
    done = subprocess.run(
        [sys.executable, "-c", _BLOCKED, MACHINE],
        cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = lines(tiny)
    assert [line for line in found if "error" in line] == []
    assert {line["family"] for line in found if line["part"] == "smoke"} == set(trained_here())
    assert [line["rc"] for line in found if line["part"] == "tests" and "rc" in line] == [0]
