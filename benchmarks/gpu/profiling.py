"""Profile a step: kernels of a recorded step by kind, PyTorch's operations of an eager step by shape."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from benchmarks.gpu.bench import free, measuring, setup, synchronize, timed
from benchmarks.gpu.cohorts import cohort_of, engine_of
from benchmarks.gpu.report import figure, out_folder
from training.engine.cohorts.cohort import Cohort

_STEPS = 5
_NORMS = ("groupnorm", "group_norm", "layer_norm", "layernorm", "rowwisemoments", "computefused", "gradinput")
_CONVOLUTIONS = ("conv", "implicit", "cudnn", "xmma_fprop", "dgrad", "wgrad", "nhwc", "nchw", "winograd")
# A kernel belongs to the first kind that has a word of the kernel's name.
_KINDS = (
    ("copy", ("nchwtonhwc", "nhwctonchw")),
    ("attention", ("flash", "fmha", "attention", "sdpa")),
    ("convolution", _CONVOLUTIONS),
    ("product", ("gemm", "nvjet", "cublas", "cutlass", "gemv", "matmul", "splitk")),
    ("norm", _NORMS),
    ("copy", ("memcpy", "copy", "transpose", "tensortransform", "cat", "memset", "fill")),
    ("triton", ("triton",)),
)


def profile() -> None:
    """One job and eight: milliseconds by kind, and the share of a step in which nothing runs. Tables: profile.txt."""
    with measuring("profile"):
        engine = engine_of("sd15")
        for jobs in (1, 8) if setup().is_cuda else (1,):
            free()
            cohort = cohort_of(engine, jobs)
            took = timed(cohort.step, warm=8, blocks=3, each=10)
            _kernels(cohort, jobs, took["ms"])
            _operations(cohort, jobs)
            del cohort


def _kernels(cohort: Cohort, jobs: int, step_ms: float) -> None:
    is_cuda = setup().is_cuda
    found: dict[str, list[float]] = {}
    for event in _traced(cohort.step, _STEPS, is_host=False).events():
        if (event.device_type != torch.autograd.DeviceType.CPU) == is_cuda:  # type: ignore[attr-defined]
            held = found.setdefault(event.name, [0.0, 0.0])
            spent = event.time_range.elapsed_us() if is_cuda else event.self_cpu_time_total
            held[0] += spent / 1e3 / _STEPS
            held[1] += 1 / _STEPS
    kinds: dict[str, float] = {}
    for name, (spent, _) in found.items():
        kinds[_kind(name)] = kinds.get(_kind(name), 0.0) + spent
    busy = sum(kinds.values())
    figure(
        "profile", jobs=jobs, step_ms=step_ms, busy_ms=round(busy, 3), idle_share=round(1 - busy / step_ms, 3),
        kernels=round(sum(count for _, count in found.values())),
        by_kind_ms={kind: round(spent, 3) for kind, spent in sorted(kinds.items(), key=lambda one: -one[1])},
    )  # fmt: skip
    lines = [f"\n== recorded step, {jobs} job(s): {step_ms} ms, busy {busy:.3f} ms"]
    for name, (spent, count) in sorted(found.items(), key=lambda one: -one[1][0])[:70]:
        lines.append(f"{spent:9.4f} ms {count:7.1f} x  {_kind(name):22s} {name[:150]}")
    _write("\n".join(lines))


def _operations(cohort: Cohort, jobs: int) -> None:
    cohort.record_with(None)
    cohort.step()
    seen = _traced(cohort.step, 2, is_host=True)
    order = "self_device_time_total" if setup().is_cuda else "self_cpu_time_total"
    plain = seen.key_averages().table(sort_by=order, row_limit=45, max_name_column_width=60)
    shaped = seen.key_averages(group_by_input_shape=True).table(
        sort_by=order, row_limit=50, max_name_column_width=45, max_shapes_column_width=90
    )
    _write(f"\n== sent step, {jobs} job(s), two steps, PyTorch's operations\n{plain}\n-- the same by shapes\n{shaped}")


def _traced(step: Callable[[], None], count: int, *, is_host: bool) -> Any:
    is_cuda = setup().is_cuda
    kinds = [ProfilerActivity.CUDA] if is_cuda else []
    if is_host or not is_cuda:
        kinds.append(ProfilerActivity.CPU)
    with profiler(activities=kinds, record_shapes=is_host) as seen:
        for _ in range(count):
            step()
        synchronize()
    return seen


def _kind(kernel: str) -> str:
    low = kernel.lower()
    return next((kind for kind, words in _KINDS if any(word in low for word in words)), "elementwise and rest")


def _write(text: str) -> None:
    folder = out_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "profile.txt").open("a") as file:
        file.write(text + "\n")
