"""Correctness of a device: compared with the CPU, CUDA graphs with eager steps, shared steps with single ones."""

import os
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import trainings
from benchmarks.gpu.bench import difference, free, gib, measuring, memory, setup, warnings
from benchmarks.gpu.cohorts import base_of, cohort_of, engine_of, job_of, walk
from benchmarks.gpu.report import figure
from training.backends.local import train
from training.engine.cohorts.job_batch import JobBatch, draw
from training.engine.engine import Engine
from training.engine.objective import errors
from training.families.registry import trained_here
from training.options import Ranks

_RANK = Ranks(4)


def smoke() -> None:
    """A tiny training of each family, as in a worker."""
    for family in trained_here():
        with measuring("smoke", family=family):
            begun = time.monotonic()
            done = train(trainings.run_of(family, f"smoke-{family}-{os.getpid()}", max_steps=8))
            figure(
                "smoke", family=family, loss=done.final_loss, steps=done.steps, device=done.device,
                s=round(time.monotonic() - begun, 1), warnings=warnings(), **memory(),
            )  # fmt: skip


def agree() -> None:
    """Loss and gradient of one step, against the CPU in float32: below 1e-5, near 1e-3 with TF32, 3e-2 in bfloat16."""
    cpu = torch.device("cpu")
    for family in trained_here():
        with measuring("agree", family=family):
            engine = engine_of(family, base_of(family, cpu, torch.float32, "tiny"))
            batch = draw(
                engine.family, engine.base, job_of(family, engine.base, 1, size="tiny", rank=_RANK.plain, alpha=8.0), 3
            )
            loss, gradient = _gradient(engine, batch)
            for name, dtype, tf32 in _PRECISIONS:
                torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
                found, here = _gradient(engine_of(family, base_of(family, dtype=dtype, size="tiny")), batch)
                figure(
                    "agree", family=family, precision=name, loss=difference(found, loss),
                    gradient=difference(here, gradient),
                )  # fmt: skip


_PRECISIONS = (
    ("float32", torch.float32, False),
    ("float32 with TF32", torch.float32, True),
    ("bfloat16", torch.bfloat16, True),
)


def _gradient(engine: Engine, batch: JobBatch) -> tuple[Tensor, Tensor]:
    """Loss and gradient [P] at a LoRA that is not zero."""
    base, layout = engine.base, engine.layers.layout("attention", _RANK)
    shift = 0.02 * torch.randn(layout.size, generator=torch.Generator().manual_seed(5))
    masters = (layout.begin(7, _RANK) + shift).to(base.device)[None].requires_grad_()
    conditions = [
        {name: value.to(base.device, None if name == "sizes" else base.dtype) for name, value in one.items()}
        for one in batch.conditions
    ]
    scales = torch.full((1, 1), 2.0, device=base.device)
    with engine.layers.applying(layout.loras(masters, scales, base.dtype)):
        loss = errors(engine.family, base, batch.made.to(base.device), conditions).mean()
        loss.backward()
    assert masters.grad is not None  # noqa: S101 - backward has just made it
    return loss.detach(), masters.grad[0]


def record() -> None:
    """Steps replayed from a CUDA graph compared with eager steps, and eager steps with themselves."""
    for family in ("sd15", "sdxl") if setup().is_full else ("sd15",):
        with measuring("record", family=family):
            engine, count = engine_of(family), setup().steps(12)
            first, masters = walk(cohort_of(engine, 2, is_recorded=False), count)
            again = walk(cohort_of(engine, 2, is_recorded=False), count)[1]
            cohort = cohort_of(engine, 2)
            second, others = walk(cohort, count)
            figure(
                "record", family=family, is_recorded=cohort.is_recording, steps=count, losses=difference(second, first),
                loras=difference(others, masters), sent_twice=difference(again, masters),
                bit_equal=torch.equal(others, masters), finite=bool(others.isfinite().all()), warnings=warnings(),
                **memory(),
            )  # fmt: skip


def slots() -> None:
    """A job alone, compared with the same job together with others."""
    with measuring("slots"):
        engine, count = engine_of("sd15"), setup().steps(12)
        alone: Tensor | None = None
        for jobs in (1, 2, 4, 8):
            cohort = cohort_of(engine, jobs)
            changed = walk(cohort, count)[1][0] - cohort.layout.begin(0, _RANK)
            alone = changed if alone is None else alone
            figure("slots", slots=jobs, of_the_change=difference(changed, alone), is_recorded=cohort.is_recording)
        among = [walk(cohort_of(engine, 4, seeds=seeds), count)[1][0] for seeds in ((0, 1, 2, 3), (0, 5, 6, 7))]
        figure("slots", other_neighbours_bit_equal=torch.equal(*among))


def live() -> None:
    """Eight jobs that join the engine one after another: it records steps while others encode and join."""
    with measuring("live"):
        count, tag = setup().steps(120), os.getpid()

        def run(name: str, seed: int, **given: Any) -> Any:
            return trainings.run_of("sd15", f"{name}-{tag}-{seed}", max_steps=count, seed=seed, every=10, **given)

        done, failed, took = trainings.together([run("live", seed) for seed in range(8)], 0.25)
        figure("live", jobs=8, finished=len(done), failed=failed, s=round(took, 1), warnings=warnings())
        for place in (0, 7) if not failed else ():
            alone = train(run("alone", place, slots=1))
            beside, lone = (trainings.matrices_of(one.path) for one in (done[place], alone))
            losses = [done[place].final_loss, alone.final_loss]
            figure("live", job=place, off_a_lone_run=difference(beside, lone), losses=losses)


_LIMITS_GIB = (12, 5)


def memory_limits() -> None:
    """Jobs of full size at the limit of memory: which of them finish?"""
    if not (setup().is_cuda and setup().is_full):
        figure("memory", skipped="wants a GPU and the full size")
        return
    base, pixels = trainings.full_base()
    _, total = torch.cuda.mem_get_info()
    try:
        for limit in _LIMITS_GIB:
            with measuring("memory", limit_gib=limit):
                free()
                torch.cuda.set_per_process_memory_fraction(min(1.0, limit * 2**30 / total))
                jobs = 16 if limit > 8 else 3
                runs = [
                    trainings.run_of("sd15", f"limit-{limit}-{os.getpid()}-{seed}", base=base, pixels=pixels,
                                     max_steps=setup().steps(40), seed=seed, every=8)
                    for seed in range(jobs)
                ]  # fmt: skip
                done, failed, took = trainings.together(runs, 0.2)
                figure(
                    "memory", limit_gib=limit, of_gib=gib(total), jobs=jobs, finished=len(done), failed=failed,
                    s=round(took, 1), warnings=warnings(), **memory(),
                )  # fmt: skip
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
