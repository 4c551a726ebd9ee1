"""Tools of all parts: the requested device and size, timing, memory, and the engine's warnings."""

import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from benchmarks.gpu.report import figure, guarded

# Floating-point operations of a training step per sample, forward and back, in 10^12: counted on the meta device.
TFLOP = {"sd15": 1.714, "sdxl": 14.5}


@dataclass(frozen=True)
class Setup:
    """The device and size to measure with."""

    device: torch.device
    size: Literal["full", "tiny"]
    dial: float  # a factor on counts of steps
    work: Path  # where base models and trainings are kept

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def is_full(self) -> bool:
        return self.size == "full"

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the frozen base: the one of jobs on this device."""
        return torch.bfloat16 if self.is_cuda else torch.float32

    def steps(self, count: int) -> int:
        """A number of steps multiplied by the dial; at least two."""
        return max(2, round(count * self.dial))


@cache
def setup() -> Setup:
    """The setup, from this process's environment."""
    kind = os.environ.get("KIT_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    is_cuda = kind == "cuda"
    size: Any = os.environ.get("KIT_SIZE", "full" if is_cuda else "tiny")
    dial = float(os.environ.get("KIT_DIAL", "1" if is_cuda else "0.2"))
    work = Path(os.environ.get("KIT_WORK", "/tmp/imprint-bench-gpu"))  # noqa: S108 - large, and created again if missing
    work.mkdir(parents=True, exist_ok=True)
    return Setup(torch.device(kind), size, dial, work)


def begin(name: str) -> None:
    """The first line of a part."""
    logging.basicConfig(level=logging.WARNING, handlers=[_Collector()])
    here = setup()
    card = torch.cuda.get_device_name() if here.is_cuda else "cpu"
    figure("begin", name=name, torch=torch.__version__, device=card, size=here.size, dial=here.dial)


@contextmanager
def measuring(part: str, **about: Any) -> Iterator[None]:
    """One measurement from an empty device: an error becomes a line, and memory is free afterwards."""
    free()
    with guarded(part, **about):
        yield
    free()


def free() -> None:
    """Free memory and reset its peak."""
    gc.collect()
    if setup().is_cuda:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def synchronize() -> None:
    """Wait for the device."""
    if setup().is_cuda:
        torch.cuda.synchronize()


def timed(work: Callable[[], Any], *, warm: int = 8, blocks: int = 5, each: int = 10) -> dict[str, float]:
    """Milliseconds of one call: the median over blocks of calls, each between two events of the device.

    `spread` is (max - min) / median of the blocks. `wall_ms` is the wall clock over all, to hold against it.
    """
    here = setup()
    warm, each = max(2, round(warm * min(1, here.dial * 2))), here.steps(each)
    for _ in range(warm):
        work()
    synchronize()
    found, begun = [], time.perf_counter()
    for _ in range(blocks):
        found.append(_block(work, each, is_cuda=here.is_cuda))
    wall = (time.perf_counter() - begun) * 1e3 / (blocks * each)
    middle = median(found)
    return {"ms": round(middle, 3), "spread": round((max(found) - min(found)) / middle, 3), "wall_ms": round(wall, 3)}


def _block(work: Callable[[], Any], count: int, *, is_cuda: bool) -> float:
    if not is_cuda:
        begun = time.perf_counter()
        for _ in range(count):
            work()
        return (time.perf_counter() - begun) * 1e3 / count
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(count):
        work()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / count


def memory() -> dict[str, float]:
    """Memory of the device in GiB: the peak since `free`, the current use, PyTorch's reserve, all processes' use."""
    if not setup().is_cuda:
        return {}
    left, total = torch.cuda.mem_get_info()
    return {
        "peak_gib": gib(torch.cuda.max_memory_allocated()),
        "now_gib": gib(torch.cuda.memory_allocated()),
        "reserved_gib": gib(torch.cuda.memory_reserved()),
        "used_gib": gib(total - left),
    }


def gib(size_bytes: float) -> float:
    return round(size_bytes / 2**30, 2)


def difference(here: Any, there: Any) -> float:
    """|here - there| / |there|."""
    mine, theirs = (torch.as_tensor(one, dtype=torch.float64).cpu() for one in (here, there))
    return float(f"{((mine - theirs).norm() / theirs.norm().clamp(min=1e-30)).item():.3e}")


_warnings: list[str] = []


class _Collector(logging.Handler):
    """Collects the engine's warnings, which are results: a step that cannot be recorded, memory that runs out."""

    def emit(self, record: logging.LogRecord) -> None:
        _warnings.append(record.getMessage()[:300])
        print("WARNING", _warnings[-1], file=sys.stderr, flush=True)


def warnings() -> list[str]:
    """The warnings since the last call."""
    found = sorted(set(_warnings))
    _warnings.clear()
    return found
