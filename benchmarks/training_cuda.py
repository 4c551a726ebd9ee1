"""What `make bench-train` adds on a CUDA machine: rates along the ladder, the matrix peak, cold and warm requests.

Of compiled steps (`IMPRINT_COMPILE`), beside those without: `compiled_samples_per_s` along the ladder, `compiled_ratio`
at each number of slots (compiled over not; above 1 is what the setting is worth), `compile_s` how long the first steps
at each took, from an empty cache. All are null where this machine cannot compile.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import training_recipes as recipes
from training.engine import compiler as compiling
from training.engine.cohort import LADDER

# One training step of sd15 at 512 px with rank 4, forward and backward, per sample: counted on the meta device.
STEP_TFLOP = 1.714
JOB_STEPS = 1000
_DEVICE = torch.device("cuda")


def measure(place: Path) -> dict[str, Any]:
    """Everything, with the plain recipe beside."""
    peak = _matrix_peak()
    plain = _plain_rate(place)
    ladder = {jobs: rate for jobs in LADDER if (rate := _rate(place, jobs)) is not None}
    compiled, compile_s = _compiled(place, list(ladder))
    best = max(ladder.values())
    cold, warm = _requests(place)
    return {
        "gpu": torch.cuda.get_device_name(),
        "plain_steps_per_s": round(plain, 1),
        "steps_per_s": round(ladder[1], 1),
        "ratio": round(ladder[1] / plain, 2),
        "ladder_samples_per_s": {str(jobs): round(rate, 1) for jobs, rate in ladder.items()},
        "compiled_samples_per_s": compiled and {str(jobs): round(rate, 1) for jobs, rate in compiled.items()},
        "compiled_ratio": compiled and {str(jobs): round(rate / ladder[jobs], 3) for jobs, rate in compiled.items()},
        "compile_s": compile_s and {str(jobs): round(took, 1) for jobs, took in compile_s.items()},
        "matrix_peak_tflops": round(peak, 1),
        "peak_share": {str(jobs): round(rate * STEP_TFLOP / peak, 3) for jobs, rate in ladder.items()},
        "idle_share": round(_idle_share(place), 3),
        "cold_s": round(cold, 1),
        "warm_s": round(warm, 1),
        "plain_cold_s": round(cold - warm + JOB_STEPS / plain, 1),
        "loras_per_gpu_hour": round(3600 * best / JOB_STEPS),
        "plain_loras_per_gpu_hour": round(3600 * plain / JOB_STEPS),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 2**30, 2),
    }


def _seconds(work: Callable[[], Any], times: int) -> float:
    """Seconds of one call, after a few that are not counted."""
    for _ in range(8):
        work()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(times):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / times


def _matrix_peak() -> float:
    """TFLOP per second of the best large bfloat16 product."""
    best = 0.0
    for side in (4096, 8192, 16384):
        left, right = (torch.randn(side, side, device=_DEVICE, dtype=torch.bfloat16) for _ in range(2))
        best = max(best, 2 * side**3 / _seconds(lambda left=left, right=right: left @ right, 20) / 1e12)
    return best


def _plain_rate(place: Path) -> float:
    """Steps per second of the plain recipe in autocast: VAE and text encoder in every step, peft."""
    base = recipes.base_of("full", _DEVICE, torch.bfloat16, place)
    rate = 1 / _seconds(recipes.plain(base, "full", cached=False), 30)
    del base
    torch.cuda.empty_cache()
    return rate


def _rate(place: Path, jobs: int) -> float | None:
    """Samples per second with so many jobs in one step; None where memory does not hold them."""
    try:
        base = recipes.base_of("full", _DEVICE, torch.bfloat16, place)
        return jobs / _seconds(recipes.ours(base, "full", place, jobs), 40)
    except torch.OutOfMemoryError:
        return None
    finally:
        torch.cuda.empty_cache()


def _compiled(place: Path, rungs: list[int]) -> tuple[dict[int, float] | None, dict[int, float] | None]:
    """The same with compiled code at each rung, and the seconds that its warm-up took; None where it cannot be."""
    compiler = compiling.compiler(place / "compiled", _DEVICE)
    if compiler is None:
        return None, None
    rates: dict[int, float] = {}
    took: dict[int, float] = {}
    for jobs in rungs:
        try:
            base = recipes.base_of("full", _DEVICE, torch.bfloat16, place)
            step = recipes.ours(base, "full", place, jobs, compiler)
            begun = time.perf_counter()
            step()
            torch.cuda.synchronize()
            took[jobs] = time.perf_counter() - begun
            rates[jobs] = jobs / _seconds(step, 40)
        except torch.OutOfMemoryError:
            break
        finally:
            base = step = None
            torch.cuda.empty_cache()
    return rates, took


def _idle_share(place: Path) -> float:
    """The share of a lone job's time in which the device does nothing, by the profiler's kernels."""
    step = recipes.ours(recipes.base_of("full", _DEVICE, torch.bfloat16, place), "full", place)
    _seconds(step, 5)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as watched:
        begun = time.perf_counter()
        for _ in range(20):
            step()
        torch.cuda.synchronize()
        took = time.perf_counter() - begun
    busy = sum(event.device_time_total for event in watched.key_averages()) / 1e6
    return max(0.0, 1 - busy / took)


def _requests(place: Path) -> tuple[float, float]:
    """Seconds from a cold request and from a warm one to the finished file: 10 pictures, 1,000 steps.

    Cold: a process of its own, from its start, that loads the base model from disk. Warm: the next one in the same.
    """
    folder = place / "full"
    recipes.save(folder)
    begun = time.perf_counter()
    told = subprocess.run(
        [sys.executable, "-c", _CHILD, str(folder), str(place / "requests")], stdout=subprocess.PIPE, check=True
    )
    first, second = (float(line) for line in told.stdout.split()[-2:])
    shutil.rmtree(folder)
    return first - begun, second - first  # time.perf_counter is one clock for all processes of a Linux machine


_CHILD = """
import sys, time
from pathlib import Path
from benchmarks import training_recipes as recipes
from training.backends.local import train
base, folder = Path(sys.argv[1]), Path(sys.argv[2])
folder.mkdir()
for seed in (1, 2):
    train(recipes.run_of(folder, "full", seed, 0, base=base, pictures=10, epochs=100))
    print(time.perf_counter(), flush=True)
"""
