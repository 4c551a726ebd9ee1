"""The parts in order, with their time limits. A part is a child process that calls some functions in turn."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bench:
    """One part: `functions` are `module:function` below this package."""

    name: str
    limit_s: int
    about: str
    functions: tuple[str, ...] = ()

    @property
    def command(self) -> Sequence[str]:
        """The command that runs the part in its own process."""
        return [sys.executable, "-m", "benchmarks.gpu", "--child", self.name]

    def run(self) -> None:
        """Call its functions in this process."""
        for named in self.functions:
            module, _, function = named.partition(":")
            getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)()


_ALL = (
    Bench("smoke", 110, "each family trains; losses and gradients against the CPU",
         ("correctness:smoke", "correctness:agree")),
    Bench("single", 90, "ceilings of the card; one job beside two plain recipes", ("rates:ceilings", "rates:single")),
    Bench("ladder", 110, "samples per second, memory and time to record for 1 to 32 jobs in one step",
         ("rates:ladder",)),
    Bench("profile", 70, "kernels of a recorded step by kind, idle share, operations by shape", ("profiling:profile",)),
    Bench("steps", 90, "recorded steps against eager ones; a job alone and beside others; jobs that join one by one",
         ("correctness:record", "correctness:slots", "correctness:live")),
    Bench("tests", 90, "the tests that need a GPU", ("gpu_tests:run",)),
    Bench("jobs", 150, "1, 8 and 16 whole jobs through the engine; what encoders cost each",
         ("whole_jobs:encoders", "whole_jobs:jobs")),
    Bench("exact", 230, "deterministic mode: the same file twice, and after a cut", ("exactness:exact",)),
    Bench("sdxl", 110, "SDXL at full size with random weights, with and without checkpointing", ("large:sdxl",)),
    Bench("zimage", 110, "Z-Image at full size with random weights, with and without checkpointing", ("large:zimage",)),
    Bench("memory", 110, "jobs on a card of 12 and of 5 GiB: which of them finish?", ("correctness:memory_limits",)),
    Bench("requests", 120, "a cold and a warm request of 1,000 steps", ("whole_jobs:requests",)),
    Bench("compile", 400, "repeated blocks compiled and not, at 1, 8 and 16 jobs", ("large:compiled",)),
)  # fmt: skip
PARTS = {part.name: part for part in _ALL}

# Each word fits into 9.5 minutes: a part that starts late gets the time that is left.
WORDS: dict[str, tuple[str, ...]] = {
    "first": ("smoke", "single", "ladder", "profile", "steps", "tests", "jobs"),
    "second": ("exact", "sdxl", "zimage", "memory", "requests"),
    "third": ("compile",),
}


def chosen(word: str) -> list[Bench]:
    """The parts of a word, or the part with that name. Raises KeyError if there is neither."""
    return [PARTS[name] for name in WORDS.get(word, (word,))]
