"""`make bench-train`: CPU seconds and memory of a training step, compared with the plain diffusers and peft recipe.

Two base models: one with the exact shapes of sd15 and random weights at 512 px, where arithmetic dominates, and the
tiny one, where the number of operations dominates. On the large one, each recipe runs in its own process, in turns: so
load on the machine affects all of them, and each has its own memory peak. CPU seconds are of the process, with one
thread. `--quick` runs only the tiny part. The last line is one JSON object:

`plain_fp32_cpu_s`: the script's step (VAE and text encoder in every step, peft); `cached_fp32_cpu_s`: the same with
latents and text encoded once; `ours_fp32_cpu_s`, `ours_bf16_cpu_s`: Imprint's; `ratio_…`: the plain recipe's time over
Imprint's; `limit_share_…`: twice the forward pass over Imprint's step; `tiny_ratio_vs_cached_peft`;
`tiny_cohort8_ratio` (eight jobs one by one over eight in one step); `peak_gb` of each recipe. `make bench-gpu` measures
GPUs.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

_QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
# Of the large base model: which recipe, in which precision of the frozen weights.
_LARGE = ("plain_fp32", "cached_fp32", "ours_fp32", "ours_bf16", "cached_bf16", "forward_fp32", "forward_bf16")
_COHORTS = (1, 2, 4, 8)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny base model alone")
    parser.add_argument("--rounds", type=int, default=3, help="turns of the large base model's recipes")
    parser.add_argument("--recipe", choices=_LARGE, help=argparse.SUPPRESS)  # what a child runs
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in _QUIET.items()):
        return subprocess.call(
            [sys.executable, "-m", "benchmarks.training", *sys.argv[1:]], env={**os.environ, **_QUIET}
        )
    with tempfile.TemporaryDirectory(prefix="imprint-bench-") as place:
        if options.recipe:
            print(json.dumps(_child(options.recipe, Path(place))))
            return 0
        result = _tiny(Path(place))
        if not options.quick:
            result = _large(options.rounds) | result
    print(json.dumps(result))
    return 0


def _large(rounds: int) -> dict[str, Any]:
    """CPU seconds and peak memory of the recipes on the large base model, each in its own process, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in _LARGE}
    peaks = dict.fromkeys(_LARGE, 0.0)
    for turn in range(rounds):
        for name in _LARGE:
            finished = subprocess.run(
                [sys.executable, "-m", "benchmarks.training", "--recipe", name], stdout=subprocess.PIPE, check=True
            )
            measured = json.loads(finished.stdout.splitlines()[-1])
            seconds[name] += measured["cpu_s"]
            peaks[name] = max(peaks[name], measured["peak_gb"])
            print(
                f"turn {turn + 1}: {name} {min(measured['cpu_s']):.2f} CPU-s, peak {measured['peak_gb']:.1f} GB",
                flush=True,
            )
    least = {name: min(found) for name, found in seconds.items()}
    return {
        **{f"{name}_cpu_s": round(value, 2) for name, value in least.items()},
        "ratio_fp32": round(least["plain_fp32"] / least["ours_fp32"], 2),
        "ratio_bf16": round(least["plain_fp32"] / least["ours_bf16"], 2),
        "limit_share_fp32": round(2 * least["forward_fp32"] / least["ours_fp32"], 2),
        "limit_share_bf16": round(2 * least["forward_bf16"] / least["ours_bf16"], 2),
        "peak_gb": {name: round(peak, 2) for name, peak in peaks.items() if not name.startswith("forward")},
    }


def _child(name: str, place: Path) -> dict[str, Any]:
    """One recipe on the large base model: CPU seconds of its steps after the first, and the peak of memory."""
    import torch

    from benchmarks import training_recipes as recipes

    torch.set_num_threads(1)
    kind, _, precision = name.partition("_")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    base = recipes.base_of("full", torch.device("cpu"), dtype, place)
    if kind == "ours":
        step = recipes.ours(base, "full", place)
    elif kind == "forward":
        step = recipes.forward(base, "full")
    else:
        step = recipes.plain(base, "full", cached=kind == "cached")
    found = _timed({name: step}, rounds=2, warm=1)[name]
    return {"cpu_s": found, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def _tiny(place: Path) -> dict[str, Any]:
    """The tiny base model: all recipes in one process, a step of each in turn."""
    import torch

    from benchmarks import training_recipes as recipes

    torch.set_num_threads(1)
    cpu = torch.device("cpu")

    def base(dtype: torch.dtype = torch.float32) -> Any:
        return recipes.base_of("tiny", cpu, dtype, place)

    steps = {
        "plain": recipes.plain(base(), "tiny", cached=False),
        "cached": recipes.plain(base(), "tiny", cached=True),
        **{f"ours_{jobs}": recipes.ours(base(), "tiny", place, jobs) for jobs in _COHORTS},
        "ours_bf16": recipes.ours(base(torch.bfloat16), "tiny", place),
    }
    found = {name: median(values) for name, values in _timed(steps, rounds=60, warm=5).items()}
    for name, value in found.items():
        print(f"tiny: {name} {value * 1e3:.1f} CPU-ms", flush=True)
    return {
        "tiny_ms": {name: round(value * 1e3, 2) for name, value in found.items()},
        "tiny_ratio_vs_cached_peft": round(found["cached"] / found["ours_1"], 2),
        **{
            f"tiny_cohort{jobs}_ratio": round(jobs * found["ours_1"] / found[f"ours_{jobs}"], 2)
            for jobs in _COHORTS[1:]
        },
    }


def _timed(steps: dict[str, Any], rounds: int, warm: int) -> dict[str, list[float]]:
    """CPU seconds of every step, in turns."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + warm):
        for name, step in steps.items():
            begun = time.process_time()
            step()
            if turn >= warm:
                found[name].append(time.process_time() - begun)
    return found


if __name__ == "__main__":
    sys.exit(main())
