"""Deterministic mode: two trainings give the same file, and so does an interrupted and resumed one."""

import json
import os
import subprocess
import sys
import time
from typing import Any

from benchmarks.gpu import trainings
from benchmarks.gpu.bench import measuring, setup
from benchmarks.gpu.report import figure, guarded
from core.errors import HandOver
from training.backends.local import train

_CHILD_S = 150


def exact() -> None:
    """Each family on its tiny base, and sd15 at full size."""
    kinds = ["sd15@64", "sdxl@64", "z-image@64"]
    if setup().is_full:
        with measuring("exact", kind="full base"):
            trainings.full_base()  # before the children, which would each make it
        kinds.insert(2, "sd15@512")
    for kind in kinds:
        compare(kind)


def compare(kind: str) -> None:
    """Two whole trainings and an interrupted one, in parallel; then the rest of the interrupted one."""
    with guarded("exact", kind=kind):
        tag, begun = f"{kind.replace('@', '-')}-{os.getpid()}", time.monotonic()
        children = {name: _begin(kind, f"exact-{tag}-{name}") for name in ("one", "two", "three-cut")}
        result = {name: _answer(name, child) for name, child in children.items()}
        rest = _answer("three-rest", _begin(kind, f"exact-{tag}-three-rest"))
        digests = {result[name]["sha256"] for name in ("one", "two")}
        figure(
            "exact", kind=kind, twice_the_same=len(digests) == 1, resumed_the_same={rest["sha256"]} == digests,
            cut_at=result["three-cut"].get("cut_at"), resumed_from=rest["from"],
            finite=result["one"]["loss"] == result["one"]["loss"], s=round(time.monotonic() - begun, 1),
        )  # fmt: skip


def _begin(kind: str, name: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.gpu.exactness", kind, name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _answer(name: str, child: "subprocess.Popen[str]") -> dict[str, Any]:
    try:
        out, errors = child.communicate(timeout=_CHILD_S)
    finally:
        child.kill()
    if child.returncode:
        raise RuntimeError(f"{name}: {errors[-500:]}")
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def child(kind: str, name: str) -> dict[str, Any]:
    """One training: whole, interrupted after a checkpoint (`-cut`), or the rest of that (`-rest`)."""
    family, _, pixels = kind.partition("@")
    count = setup().steps(300 if pixels == "512" or family == "z-image" else 700) if setup().is_cuda else 40
    run = trainings.run_of(
        family, name.removesuffix("-cut").removesuffix("-rest"), pixels=int(pixels), max_steps=count,
        base=trainings.full_base()[0] if pixels == "512" else None, deterministic=True, slots=2,
        every=max(1, count // 50), cut_after=count // 3 if name.endswith("-cut") else None,
    )  # fmt: skip
    try:
        done = train(run)
    except HandOver:
        return {"cut_at": list(run.checkpoints.steps())[-1]}
    return {"sha256": done.sha256, "from": done.resumed_from, "loss": done.final_loss}


if __name__ == "__main__":
    print(json.dumps(child(*sys.argv[1:])))
