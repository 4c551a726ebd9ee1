"""`make bench-resume`: the difference between a training that was killed (-9) and resumed, and an uninterrupted one.

Imprint and a plain loop (peft, AdamW and generator states, saved as diffusers' scripts do) each train in their own
processes on the tiny base model, with the demo's ten pictures and the same number of steps: once without interruption;
once killed as soon as the second half has begun and a checkpoint exists, and restarted by the same command. The error
is the distance between the two final LoRAs, relative to the change that the uninterrupted one made after the
checkpoint: 0 is exact, 1 is as bad as not training after it. The last line is one JSON object: `ours_error,
plain_error`, `plain_rerun_error` (the plain loop twice without a kill: the part of its error that the kill does not
cause), `steps`, `ours_killed_after`, `plain_killed_after` (the steps of the checkpoints) and `byte_identical` (our two
files).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.home import ROOT, clear_settings
from training.checkpoint_folder import FolderCheckpoints
from training.lora import file as lora_file
from training.lora.safetensor import Array, unpack

PICTURES = ROOT / "demo" / "pictures"
# The plain loop saves a checkpoint at intervals of steps, as the scripts do, not of epochs.
PLAIN_EVERY = 45
_WAIT_S = 600.0

Weights = dict[str, Array]


def main() -> int:
    """Run the benchmark in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of each training; the kill comes in the second half")
    steps = parser.parse_args().steps
    clear_settings()
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1")
    with tempfile.TemporaryDirectory(prefix="imprint-bench-") as folder:
        place = Path(folder)
        base = place / "base"
        run([sys.executable, "-m", "training.tiny.base", str(base)])
        result = {"steps": steps, **_ours(place, base, steps), **_plain(place, base, steps)}
    print(json.dumps({"ours_error": result.pop("ours_error"), "plain_error": result.pop("plain_error"), **result}))
    return 0


def _ours(place: Path, base: Path, steps: int) -> dict[str, Any]:
    def command(name: str) -> list[str]:
        return [
            sys.executable, "-m", "training", str(PICTURES), "--base-model", str(base), "--family", "sd15",
            "--trigger", "zrk", "--class-word", "mascot", "--resolution", "64", "--max-steps", str(steps),
            "--device", "cpu", "--resume-dir", str(place / name), "--out", str(place / f"{name}.safetensors"),
        ]  # fmt: skip

    def at_kill(folder: Path) -> tuple[int, Weights] | None:
        kept = FolderCheckpoints(folder)
        step = max(kept.steps(), default=0)
        if step < steps // 2:
            return None
        tensors, _ = unpack(kept.load(step))
        held = {name.removeprefix("weights/"): part for name, part in tensors.items() if name.startswith("weights/")}
        return step, {name: part.floats() for name, part in held.items()}

    run(command("straight"))
    step, before = killed(command("killed"), place / "killed", at_kill)
    run(command("killed"))
    one, other = (place / f"{name}.safetensors" for name in ("straight", "killed"))
    error = share(_of_file(one), _of_file(other), before)
    print(f"ours: killed after step {step} of {steps}, error {error:.3g}")
    return {
        "ours_error": error,
        "ours_killed_after": step,
        "byte_identical": one.read_bytes() == other.read_bytes(),
    }


def _of_file(path: Path) -> Weights:
    """The matrices of a file by their names in checkpoints, with kohya's underscores instead of dots."""
    naming = lora_file.naming_of("sd15")
    tensors, _ = unpack(path.read_bytes())
    ends = {naming.down: ".down", naming.up: ".up"}
    return {
        name.removeprefix(naming.prefix).removesuffix(end) + short: part.floats()
        for name, part in tensors.items()
        for end, short in ends.items()
        if name.endswith(end)
    }


def _plain(place: Path, base: Path, steps: int) -> dict[str, Any]:
    def command(name: str) -> list[str]:
        return [
            sys.executable, "-m", "benchmarks.resume_plain", str(base), str(PICTURES), str(place / name),
            "--steps", str(steps), "--every", str(PLAIN_EVERY),
        ]  # fmt: skip

    def read(path: Path) -> Weights:
        return {name: part.floats() for name, part in unpack(path.read_bytes())[0].items()}

    def at_kill(folder: Path) -> tuple[int, Weights] | None:
        steps_there = [int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*")]
        step = max(steps_there, default=0)
        return (step, read(folder / f"checkpoint-{step}" / "lora.safetensors")) if step >= steps // 2 else None

    run(command("plain-straight"))
    run(command("plain-again"))
    step, before = killed(command("plain-killed"), place / "plain-killed", at_kill)
    run(command("plain-killed"))
    straight, again, resumed = (
        read(place / name / "lora.safetensors") for name in ("plain-straight", "plain-again", "plain-killed")
    )
    error, control = share(straight, resumed, before), share(straight, again, before)
    print(f"plain: killed after step {step} of {steps}, error {error:.3g}; without a kill {control:.3g}")
    return {"plain_error": error, "plain_rerun_error": control, "plain_killed_after": step}


def share(straight: Weights, resumed: Weights, before: Mapping[str, Array]) -> float:
    """The distance between the final LoRAs, relative to the change of the uninterrupted one after the checkpoint."""
    named = {name.replace(".", "_"): values for name, values in before.items()}

    def distance(one: Weights, other: Mapping[str, Array]) -> float:
        plain = {name.replace(".", "_"): values for name, values in other.items()}
        parts = [(values, plain[name.replace(".", "_")]) for name, values in one.items()]
        return float(sum(np.square(a - b, dtype=np.float64).sum() for a, b in parts) ** 0.5)

    return distance(straight, resumed) / distance(straight, named)


def run(command: Sequence[str]) -> None:
    """Run to the end; show the output if it fails."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}")


def killed(
    command: Sequence[str], folder: Path, at_kill: Callable[[Path], tuple[int, Weights] | None]
) -> tuple[int, Weights]:
    """Start a training and kill it once it has a checkpoint in its second half; returns the step and weights of that.

    If a later checkpoint appears before the kill, it returns the later one, because the next run resumes from it.
    """
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + _WAIT_S
        while at_kill(folder) is None:
            if process.poll() is not None or time.monotonic() > until:
                process.kill()
                raise SystemExit(f"{' '.join(command)} ended before it could be killed: {process.returncode}")
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    if (found := at_kill(folder)) is None:
        raise SystemExit(f"{folder} has lost its checkpoint")
    return found


if __name__ == "__main__":
    sys.exit(main())
