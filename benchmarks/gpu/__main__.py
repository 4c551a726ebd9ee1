"""`python -m benchmarks.gpu WORD…`: run the parts of a word one after another, each in a child process with a limit.

Words: first, second, third, or names of parts. Results go to `$OUT/results.jsonl`, one JSON line per figure, and
`$OUT/profile.txt`. If a part fails or hangs, the results of the others are kept. A word takes 9.5 minutes at most.
"""

import argparse
import contextlib
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from benchmarks.gpu.parts import PARTS, WORDS, Bench, chosen
from benchmarks.gpu.report import figure

_LIMIT_S = 540.0  # of 9.5 minutes: the rest is for installing wheels and starting
_RESERVE_S = 8.0  # for the last lines
_LEAST_S = 20.0  # a part that gets less is not begun
_PACKAGES = (
    "torch", "triton", "transformers", "diffusers", "peft", "accelerate", "safetensors", "numpy", "pydantic", "pytest",
    "pillow",
)  # fmt: skip
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "OMP_WAIT_POLICY": "PASSIVE",
}
_CARD = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit,power.draw,temperature.gpu"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the requested parts. Exit code 1 if one failed or was skipped."""
    options = _options(arguments)
    for name, value in (("DEVICE", options.device), ("SIZE", options.size), ("DIAL", options.dial)):
        if value is not None:
            os.environ[f"KIT_{name}"] = str(value)
    if options.out is not None:
        os.environ["OUT"] = options.out
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if options.child is not None:
        from benchmarks.gpu import bench

        bench.begin(options.child)
        PARTS[options.child].run()
        return 0
    figure("environment", python=sys.version.split()[0], card=_card(), **_versions())
    signal.signal(signal.SIGTERM, _end)
    codes = [run_parts(chosen(word), options.limit) for word in options.words]
    figure("end", card=_card())
    return max(codes)


def run_parts(parts: Sequence[Bench], limit_s: float = _LIMIT_S) -> int:
    """Run parts one after another, all within `limit_s`. Returns 1 if one failed, was killed or had no time left."""
    deadline, code = time.monotonic() + limit_s - _RESERVE_S, 0
    for part in parts:
        left = deadline - time.monotonic()
        if left < min(_LEAST_S, part.limit_s):
            figure("run", name=part.name, skipped="no time is left")
            code = 1
            continue
        allowed, begun = min(float(part.limit_s), left), time.monotonic()
        returned = _run(part, allowed)
        figure("run", name=part.name, rc=returned, s=round(time.monotonic() - begun, 1), limit_s=round(allowed))
        code = code or int(returned != 0)
    return code


def _run(part: Bench, limit_s: float) -> int:
    """The exit code of a part; 124 if it was killed at its limit."""
    child = subprocess.Popen(part.command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return child.wait(limit_s)
    except subprocess.TimeoutExpired:
        return 124
    finally:  # also when this process is terminated; ends the children of a part too
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _end(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parts = [f"  {part.name:10}{part.limit_s:4} s  {part.about}" for part in PARTS.values()]
    words = [f"  {word:10}{' '.join(names)}" for word, names in WORDS.items()]
    listed = "\n".join(["words:", *words, "", "parts:", *parts])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, epilog=listed,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    names = [*WORDS, *PARTS]
    parser.add_argument("words", nargs="*", default=["first"], metavar="WORD", help="default: first")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: CUDA where it is there (KIT_DEVICE)")
    parser.add_argument("--size", choices=["full", "tiny"], help="default: full on CUDA, else tiny (KIT_SIZE)")
    parser.add_argument("--dial", type=float, help="a factor on counts of steps (KIT_DIAL)")
    parser.add_argument("--limit", type=float, default=_LIMIT_S, help="seconds for the parts of one word")
    parser.add_argument("--out", help="folder of results (OUT; default gpukit-out)")
    parser.add_argument("--child", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if unknown := [word for word in options.words if word not in names]:
        parser.error(f"no such word or part: {', '.join(unknown)}; there are {', '.join(names)}")
    return options


def _versions() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _card() -> str | None:
    """The state of the card from nvidia-smi; None without it."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return None
    asked = [tool, f"--query-gpu={_CARD}", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False).stdout.strip()[:300]


if __name__ == "__main__":
    sys.exit(main())
