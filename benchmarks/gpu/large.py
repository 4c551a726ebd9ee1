"""The large families at full size with random weights, and compiled blocks."""

import time
from typing import Any

import torch

from benchmarks.gpu.bench import TFLOP, free, measuring, memory, setup, synchronize, timed, warnings
from benchmarks.gpu.cohorts import cohort_of, engine_of
from benchmarks.gpu.report import figure
from training.engine.engine import Engine


def sdxl() -> None:
    """SDXL at 1024 pixels: rates and memory for 1 to 8 jobs, and with gradient checkpointing."""
    with measuring("sdxl"):
        engine = engine_of("sdxl")
        engine.base.denoiser  # noqa: B018 - loads it
        figure("sdxl", parameters=_parameters(engine), **memory())
        cases = ((1, False), (2, False), (4, False), (1, True), (8, False))
        for jobs, is_lean in cases if setup().is_cuda else ((1, False), (1, True)):
            _measure("sdxl", engine, jobs, is_lean, each=max(2, 8 // jobs))


def zimage() -> None:
    """Z-Image at 1024 pixels: one job, because its jobs do not share steps."""
    with measuring("z-image"):
        engine = engine_of("z-image")
        engine.base.denoiser  # noqa: B018 - loads it
        figure("z-image", parameters=_parameters(engine), **memory())
        for is_lean in (False, True):
            _measure("z-image", engine, 1, is_lean, each=3)


def _measure(family: str, engine: Engine, jobs: int, is_lean: bool, each: int) -> None:
    free()
    denoiser: Any = engine.base.denoiser
    (denoiser.enable_gradient_checkpointing if is_lean else denoiser.disable_gradient_checkpointing)()
    about = {"jobs": jobs, "checkpointing": is_lean}
    try:
        cohort = cohort_of(engine, jobs)
        took = timed(cohort.step, warm=6, blocks=3, each=each)
    except torch.OutOfMemoryError as error:
        figure(family, **about, error=str(error)[:200], **memory())
        return
    cohort.read_losses()
    losses = [job.losses[-1][1] for job in cohort.jobs if job is not None]
    rate = jobs * 1e3 / took["ms"]
    tflops = round(rate * TFLOP[family], 1) if family in TFLOP and setup().is_full else None
    figure(
        family, **about, samples_per_s=round(rate, 2), **took, tflops=tflops, is_recorded=cohort.is_recording,
        finite=all(loss == loss for loss in losses), warnings=warnings(), **memory(),
    )  # fmt: skip


def _parameters(engine: Engine) -> int:
    return sum(weights.numel() for weights in engine.base.denoiser.parameters())


def compiled() -> None:
    """sd15 with repeated blocks compiled by diffusers' own call, and without."""
    # Each block is compiled separately, because the indices of its LoRAs are constants in it.
    torch._dynamo.config.recompile_limit = 256
    for jobs in (1, 8, 16) if setup().is_cuda else (1,):
        rates: dict[str, float] = {}
        for kind in ("compiled", "plain"):
            with measuring("compile", jobs=jobs, kind=kind):
                engine = engine_of("sd15")
                engine.layers  # noqa: B018 - wraps the layers, which compiled blocks hold
                if kind == "compiled":
                    backend = {"backend": "inductor" if setup().is_cuda else "eager"}
                    engine.base.denoiser.compile_repeated_blocks(**backend)
                cohort = cohort_of(engine, jobs)
                begun = time.perf_counter()
                cohort.step()
                synchronize()
                first = time.perf_counter() - begun
                took = timed(cohort.step, warm=8, blocks=4, each=max(4, 40 // jobs))
                rates[kind] = jobs * 1e3 / took["ms"]
                figure(
                    "compile", jobs=jobs, kind=kind, samples_per_s=round(rates[kind], 1), first_step_s=round(first, 1),
                    is_recorded=cohort.is_recording, warnings=warnings(), **took, **memory(),
                )  # fmt: skip
                del cohort, engine
        if len(rates) == 2:
            figure("compile", jobs=jobs, ratio=round(rates["compiled"] / rates["plain"], 3))
