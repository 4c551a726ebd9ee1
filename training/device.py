"""What a training worker trains on: found and tried at its start, before a job is taken on a broken GPU."""

import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend

from core.errors import BackendFailed

log = logging.getLogger(__name__)

_SIDE = 256
_chosen: dict[str, tuple[str, ...]] = {}  # attention backends, by device
_DRIVER = re.compile(r"\d+\.\d+(\.\d+)?")

# From here on bfloat16 pays on a CPU that has units for it: a full-size sd15 takes half the time, the tiny model twice
# as long (docs/benchmarks.md). In file: a UNet of sd15 has 1.7 GB in float16.
LARGE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class DeviceReport:
    """The device that trainings will run on."""

    kind: str  # cuda or cpu
    name: str
    memory_bytes: int  # of the device; of the machine for a CPU
    precision: str  # bfloat16 or float32: of the frozen base model
    matmul_ms: float  # the trial product, the second time round
    text: str  # one line for the log

    def to_dict(self) -> dict[str, object]:
        """As JSON."""
        return dict(vars(self))


def choose(device: str = "auto") -> torch.device:
    """The device for `auto`, `cpu` or `cuda` (or `cuda:1`). Raises BackendFailed if CUDA is asked for and not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BackendFailed(
            f"the device {device} was asked for, but this machine has no usable CUDA: check nvidia-smi and the driver, "
            "or set the device to auto"
        )
    return torch.device(device)


def make_current(device: torch.device) -> None:
    """Make `device` the current one of this thread, which work without a named device goes to: graphs, events, streams.

    Every thread that works on a device calls this first.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def configure(device: torch.device, *, deterministic: bool = False) -> None:
    """Make `device` the current one of this thread, and choose the kernels of this process for its architecture.

    Call it before the first work on the device.
    """
    make_current(device)
    if device.type != "cuda":
        return
    if deterministic:
        repeat_exactly()
    else:
        torch.backends.cudnn.benchmark = True  # shapes stay, so trying each kernel once pays
    chosen = attention_backends(torch.cuda.get_device_capability(device), deterministic=deterministic)
    torch.backends.cuda.enable_flash_sdp("flash" in chosen)
    torch.backends.cuda.enable_mem_efficient_sdp("efficient" in chosen)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.enable_math_sdp(True)
    if _chosen.get(str(device)) != chosen:
        _chosen[str(device)] = chosen
        log.info("attention on %s: %s", device, ", ".join(chosen))


def attention_backends(capability: tuple[int, int], *, deterministic: bool = False) -> tuple[str, ...]:
    """PyTorch's implementations of attention that a card may use, the plain one last, which takes everything.

    Flash attention needs compute capability 8.0. The backward pass of memory-efficient attention adds in whatever order
    threads arrive; that of flash attention need not. cuDNN's is left out until a figure shows that it pays.
    """
    flash = ("flash",) if capability >= (8, 0) else ()
    return (*flash, *(() if deterministic else ("efficient",)), "math")


def max_slots(device: str = "auto") -> int:
    """Most jobs that are worth training in one step: a CPU is busy with one, a GPU takes what its memory holds."""
    return 32 if choose(device).type == "cuda" else 1


def precision(device: torch.device, base_bytes: int = 0, asked: str = "auto") -> torch.dtype:
    """What a frozen base model of `base_bytes` is kept in: bfloat16 where that is faster, else float32.

    That is: on CUDA cards that have it, and on CPUs with units for it if the base is so large that arithmetic counts.
    CUDA cards without it (T4, V100, RTX 20xx) take float16, with a loss scale for each slot. `asked` decides where it
    is not `auto`; raises BackendFailed if the device cannot do it.
    """
    if asked != "auto":
        dtype: torch.dtype = getattr(torch, asked)
        if not can_hold(device, dtype):
            raise BackendFailed(f"{asked} was asked for, which {device} does not have: set the precision to auto")
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if can_hold(device, torch.bfloat16) else torch.float16
    is_faster = base_bytes >= LARGE_BYTES and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if is_faster else torch.float32


def can_hold(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a base model in `dtype` can be trained on at all: every CPU computes in all, if slowly."""
    return dtype != torch.bfloat16 or device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def repeat_exactly() -> None:
    """From now on this process gives the same bits for the same numbers on CUDA, too, with slower kernels.

    https://docs.pytorch.org/docs/stable/notes/randomness.html. Call it before the first product on the device: cuBLAS
    reads its part of the environment then, and torch refuses products of a process that was late.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def probe(device: str = "auto", *, deterministic: bool = False) -> DeviceReport:
    """Find the device and try it with a small product. Raises BackendFailed if it reckons wrongly or not at all."""
    chosen = choose(device)
    configure(chosen, deterministic=deterministic)
    kept = precision(chosen)
    try:
        took = _try(chosen)
        name, memory = _describe(chosen)
    except RuntimeError as error:  # torch's CUDA errors are such
        raise BackendFailed(f"the device {chosen} does not work: {str(error)[:200]}") from error
    gib, trial = memory / 2**30, f"product ok, {took:.1f} ms"
    short = str(kept).removeprefix("torch.")
    if chosen.type == "cuda":
        text = f"CUDA: {name}, {gib:.0f} GiB, base models in {short}; {trial}"
    else:
        why = "CUDA is not there" if not torch.cuda.is_available() else "CUDA was not asked for"
        text = f"{why}: training on the CPU ({torch.get_num_threads()} threads, {gib:.0f} GiB); {trial}"
        if os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE":
            # Spinning OpenMP threads on shared cores made a run 5 to 7 times slower (FINDINGS.md, section 2).
            text += ". Set OMP_WAIT_POLICY=PASSIVE where cores are shared"
    return DeviceReport(chosen.type, name, memory, short, took, text)


def card_facts(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """What a report of trouble with a card must say: versions, and the attention that a base in `dtype` gets."""
    facts = {"torch": torch.__version__, "attention": _attention(device, dtype), "precision": str(dtype).split(".")[1]}
    if device.type == "cuda":
        capability = ".".join(str(part) for part in torch.cuda.get_device_capability(device))
        facts = {"capability": capability, "driver": _driver(), "CUDA": torch.version.cuda or "none", **facts}
    return facts


def _attention(device: torch.device, dtype: torch.dtype) -> str:
    """The implementation that torch chooses for the largest attention of sd15 at 512 pixels."""
    query = torch.empty(1, 8, 4096, 40, device=device, dtype=dtype, requires_grad=True)
    try:
        chosen = SDPBackend(torch._fused_sdp_choice(query, query, query))
    except (AttributeError, RuntimeError, ValueError):  # not part of PyTorch's public interface
        return "unknown"
    return chosen.name.lower().removesuffix("_attention")


def _driver() -> str:
    """The version of the NVIDIA driver, as its kernel module tells it."""
    try:
        match = _DRIVER.search(Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return "unknown"
    return match.group() if match else "unknown"


def _try(device: torch.device) -> float:
    """Milliseconds of a product whose result is known: (i + j) summed against ones."""
    numbers = torch.arange(_SIDE, dtype=torch.float32)
    left = (numbers[:, None] + numbers[None, :]).to(device)
    ones = torch.ones(_SIDE, _SIDE, device=device)
    took = 0.0
    for _ in range(2):
        begun = time.perf_counter()
        made = (left @ ones)[:, 0].cpu()  # the copy waits for the device
        took = (time.perf_counter() - begun) * 1e3
    wanted = _SIDE * numbers + numbers.sum()
    # A card may use TF32, which keeps 10 bits of each factor; sums of such stay within a thousandth.
    if not torch.allclose(made, wanted, rtol=2e-3):
        raise BackendFailed(f"the device {device} gives wrong products: take it out of service")
    return took


def _describe(device: torch.device) -> tuple[str, int]:
    """The device's name and its memory in bytes."""
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return str(facts.name), int(facts.total_memory)
    return "CPU", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
