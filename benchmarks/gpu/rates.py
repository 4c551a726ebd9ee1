"""Speed: the limits of the card, one job compared with two plain recipes, and 1 to 32 jobs in one step."""

import time
from typing import Any

import torch

from benchmarks import training_recipes as recipes
from benchmarks.gpu.bench import TFLOP, free, measuring, memory, setup, synchronize, timed, warnings
from benchmarks.gpu.cohorts import cohort_of, engine_of
from benchmarks.gpu.report import figure
from training.engine.cohorts.cohort import LADDER, Cohort
from training.engine.engine import Engine

JOB_STEPS = 1000  # 10 pictures, 100 epochs


def ceilings() -> None:
    """The fastest large product and the fastest large copy, on random data."""
    with measuring("ceilings"):
        here, best = setup(), {}
        for side in (4096, 8192, 16384) if here.is_cuda else (512,):
            left, right = (torch.randn(side, side, device=here.device, dtype=here.dtype) for _ in range(2))
            took = timed(lambda left=left, right=right: left @ right, warm=5, blocks=5, each=8)  # type: ignore[misc]
            best[side] = round(2 * side**3 / took["ms"] / 1e9, 1)
        source = torch.randn(2**30 if here.is_cuda else 2**22, device=here.device)
        target = torch.empty_like(source)
        took = timed(lambda: target.copy_(source), warm=3, blocks=5, each=5)
        figure("ceilings", matrix_tflops=best, copy_gb_per_s=round(2 * source.nbytes / took["ms"] / 1e6))


def single() -> None:
    """One job: diffusers' script, the same with caches, Imprint recorded and eager, and only the forward pass."""
    peers: dict[str, float] = {}
    for kind in ("script", "cached"):
        with measuring(f"plain {kind}"):
            step = _plain(is_cached=kind == "cached")
            took = timed(step, warm=6, blocks=4, each=8)
            peers[kind] = took["ms"]
            figure(f"plain {kind}", **took, steps_per_s=round(1e3 / took["ms"], 1), **memory())
            del step
    with measuring("ours"):
        engine = engine_of("sd15")
        for name, is_recorded in (("recorded", True), ("sent", False)):
            free()
            cohort = cohort_of(engine, 1, is_recorded=is_recorded)
            took = timed(cohort.step, warm=10, blocks=5, each=20)
            over = {kind: round(value / took["ms"], 2) for kind, value in peers.items()}
            figure(f"ours {name}", **took, **_rate(1, took), over=over, **_about(cohort))
            del cohort
        _forward(engine)


def _plain(*, is_cached: bool) -> Any:
    """The step of diffusers' script: VAE and text encoder in the base's precision, in every step unless cached."""
    here = setup()
    base = recipes.base_of(here.size, here.device, here.dtype, here.work)
    for name in ("vae", "text_encoder"):
        base.encoders[name].to(here.dtype)
    return recipes.plain(base, here.size, cached=is_cached)


def _forward(engine: Engine) -> None:
    here, denoiser = setup(), engine.base.denoiser
    side = denoiser.config.sample_size if here.is_full else 8
    latents = torch.randn(1, 4, side, side, device=here.device, dtype=here.dtype)
    context = torch.randn(1, 77, denoiser.config.cross_attention_dim, device=here.device, dtype=here.dtype)
    times = torch.tensor([500], device=here.device)
    with torch.no_grad():
        took = timed(lambda: denoiser(latents, times, context, return_dict=False), warm=5, blocks=4, each=10)
    figure("forward", **took)


def ladder() -> None:
    """Samples per second, memory, and the time until steps are recorded, at every number of slots."""
    with measuring("ladder"):
        engine = engine_of("sd15")
        rates: dict[int, float] = {}
        for jobs in LADDER if setup().is_cuda else LADDER[:3]:
            free()
            base_gib = memory().get("now_gib")
            try:
                cohort = cohort_of(engine, jobs)
                ready = _ready_s(cohort)
                took = timed(cohort.step, warm=6, blocks=5, each=max(4, 40 // jobs))
            except torch.OutOfMemoryError as error:
                figure("ladder", jobs=jobs, error=str(error)[:200])
                break
            rates[jobs] = jobs * 1e3 / took["ms"]
            over = round(rates[jobs] / rates[jobs // 2], 2) if jobs > 1 else None
            figure(
                "ladder", jobs=jobs, **took, **_rate(jobs, took), over_half=over, ready_s=ready, base_gib=base_gib,
                **_about(cohort),
            )  # fmt: skip
            del cohort
        _idle_slots(engine)
        best = max(rates.values(), default=0.0)
        figure("ladder", best_samples_per_s=round(best, 1), loras_per_gpu_hour=round(3600 * best / JOB_STEPS))


def _ready_s(cohort: Cohort) -> float:
    """Seconds of the first steps: three eager ones, and the recording."""
    begun = time.perf_counter()
    for _ in range(4):
        cohort.step()
    synchronize()
    return round(time.perf_counter() - begun, 2)


def _idle_slots(engine: Engine) -> None:
    """The last job of a burst, in a step with many slots."""
    for slots in (8, 32) if setup().is_cuda else (4,):
        free()
        cohort = cohort_of(engine, 1, slots)
        took = timed(cohort.step, warm=6, blocks=3, each=max(4, 40 // slots))
        figure("idle slots", jobs=1, slots=slots, samples_per_s=round(1e3 / took["ms"], 1), **took)
        del cohort


def _rate(jobs: int, took: dict[str, float]) -> dict[str, float]:
    rate = jobs * 1e3 / took["ms"]
    found = {"samples_per_s": round(rate, 1), "loras_per_hour": round(3600 * rate / JOB_STEPS)}
    return found | ({"tflops": round(rate * TFLOP["sd15"], 1)} if setup().is_full else {})


def _about(cohort: Cohort) -> dict[str, Any]:
    """Whether a cohort's steps are recorded, and the milliseconds that the host needs to draw a batch."""
    synchronize()
    count, begun = setup().steps(10), time.perf_counter()
    for _ in range(count):
        cohort.gather()
    host = (time.perf_counter() - begun) * 1e3 / count
    return {"is_recorded": cohort.is_recording, "host_ms": round(host, 3), "warnings": warnings(), **memory()}
