"""Whole jobs through the engine, with pictures, checkpoints and files; and the time of a request, cold and warm."""

import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

from benchmarks.gpu import trainings
from benchmarks.gpu.bench import measuring, memory, setup, synchronize, warnings
from benchmarks.gpu.rates import JOB_STEPS
from benchmarks.gpu.report import figure
from training import families
from training.backends.local import train
from training.engine.cohorts.slot_ladder import FILE
from training.families.family import Where


def encoders() -> None:
    """The time before a job's first step: loading the base, and moving VAE and text encoders to the device."""
    with measuring("encoders"):
        folder, _ = trainings.full_base()
        begun = time.monotonic()
        base = families.find("sd15").load(Where(folder, setup().device, setup().dtype))
        held = base.denoiser
        synchronize()
        loaded, took = time.monotonic() - begun, []
        for _ in range(4):
            begun = time.monotonic()
            with base.encoders.awake("vae", "text_encoder"):
                synchronize()
            took.append(round(time.monotonic() - begun, 3))
        del held
        figure("encoders", load_s=round(loaded, 1), first_wake_s=took[0], wake_s=took[1:], **memory())


def jobs() -> None:
    """1, 8 and 16 jobs at once, to compare their rate with that of the bare steps."""
    with measuring("jobs"):
        folder, pixels = trainings.full_base()
        count = setup().steps(300)
        for number in (1, 8, 16) if setup().is_cuda else (1, 2):
            with measuring("jobs", jobs=number):
                runs = [
                    trainings.run_of("sd15", f"jobs-{number}-{seed}", base=folder, pixels=pixels, max_steps=count,
                                     seed=seed, every=10)
                    for seed in range(number)
                ]  # fmt: skip
                done, failed, took = trainings.together(runs)
                longest = max((one.train_seconds for one in done), default=0.0)
                rate = round(number * count / longest, 1) if longest else None
                figure(
                    "jobs", jobs=number, steps=count, finished=len(done), failed=failed, all_s=round(took, 1),
                    training_s=round(longest, 1), samples_per_s=rate, warnings=warnings(), **memory(),
                )  # fmt: skip
        found = setup().work / "encodings" / FILE
        figure("jobs", ladder=found.read_text()[:1500] if found.is_file() else None)


def requests() -> None:
    """Seconds from a request to its finished file: 10 pictures, 1,000 steps at full size.

    Cold: a new process, from its start, which loads the base model from disk. Warm: the next two in the same process.
    """
    with measuring("requests"):
        folder, pixels = trainings.full_base()
        steps = JOB_STEPS if setup().is_full and setup().is_cuda else setup().steps(20)
        begun = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.gpu.whole_jobs", str(folder), str(pixels), str(steps)]
        finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        ends = [float(line) for line in finished.stdout.split()[-3:]]
        # time.perf_counter is one clock for all processes of a Linux machine.
        figure(
            "requests", steps=steps, cold_s=round(ends[0] - begun, 1),
            warm_s=[round(end - start, 1) for start, end in pairwise(ends)],
        )  # fmt: skip


def child(folder: str, pixels: str, steps: str) -> None:
    """Do three trainings one after another; return the time at which each was finished."""
    for seed in range(3):
        train(
            trainings.run_of(
                "sd15", f"request-{time.time_ns()}-{seed}", base=Path(folder), pixels=int(pixels), max_steps=int(steps),
                seed=seed, every=10, pictures=10,
            )
        )  # fmt: skip
        print(time.perf_counter(), flush=True)


if __name__ == "__main__":
    child(*sys.argv[1:])
