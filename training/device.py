"""Find the device of a training worker and test it at start, before the worker takes jobs."""

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

# Base models from this size are faster in bfloat16 on a CPU with hardware for it: a full-size sd15 takes half the time,
# the tiny model twice as long (docs/benchmarks.md). File size: the UNet of sd15 has 1.7 GB in float16.
LARGE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class DeviceReport:
    """The device that this process trains on."""

    kind: str  # cuda or cpu
    name: str
    memory_bytes: int  # of the device; of the machine for a CPU
    precision: str  # bfloat16 or float32: of the frozen base model
    matmul_ms: float  # of the second test product
    text: str  # one line for the log

    def to_dict(self) -> dict[str, object]:
        """The report as JSON values."""
        return dict(vars(self))


def choose(device: str = "auto") -> torch.device:
    """The device for `auto`, `cpu` or `cuda` (or `cuda:1`). Raises BackendFailed if CUDA is asked for and not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BackendFailed(
            f"the device {device} was requested, but this machine has no usable CUDA: check nvidia-smi and the driver, "
            "or set the device to auto"
        )
    return torch.device(device)


def make_current(device: torch.device) -> None:
    """Make `device` the current device of this thread: graphs, events and streams use it.

    Every thread that works on a device must call this first.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def configure(device: torch.device, *, deterministic: bool = False) -> None:
    """Make `device` current for this thread, and choose kernels for its architecture for this process.

    Call it before any other work on the device.
    """
    make_current(device)
    if device.type != "cuda":
        return
    if deterministic:
        repeat_exactly()
    else:
        torch.backends.cudnn.benchmark = True  # shapes do not change, so trying each kernel once pays
    chosen = attention_backends(torch.cuda.get_device_capability(device), deterministic=deterministic)
    torch.backends.cuda.enable_flash_sdp("flash" in chosen)
    torch.backends.cuda.enable_mem_efficient_sdp("efficient" in chosen)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.enable_math_sdp(True)
    if _chosen.get(str(device)) != chosen:
        _chosen[str(device)] = chosen
        log.info("attention on %s: %s", device, ", ".join(chosen))


def attention_backends(capability: tuple[int, int], *, deterministic: bool = False) -> tuple[str, ...]:
    """PyTorch's attention implementations that a card may use; the last one supports everything.

    Flash attention needs compute capability 8.0. The backward pass of memory-efficient attention is not deterministic;
    that of flash attention can be. cuDNN's is not used, because no measurement shows that it is faster.
    """
    flash = ("flash",) if capability >= (8, 0) else ()
    return (*flash, *(() if deterministic else ("efficient",)), "math")


def max_slots(device: str = "auto") -> int:
    """The maximum of jobs in one step: one keeps a CPU busy; on a GPU memory is the limit."""
    return 32 if choose(device).type == "cuda" else 1


def precision(device: torch.device, base_bytes: int = 0, asked: str = "auto") -> torch.dtype:
    """The precision of a frozen base model of `base_bytes`: bfloat16 where it is faster, else float32.

    bfloat16 is faster on CUDA cards that support it, and on CPUs with hardware for it if the base model is large. Older
    CUDA cards (T4, V100, RTX 20xx) use float16, with a loss scale per slot. `asked` overrides this unless it is `auto`;
    raises BackendFailed if the device does not support it.
    """
    if asked != "auto":
        dtype: torch.dtype = getattr(torch, asked)
        if not can_hold(device, dtype):
            raise BackendFailed(f"{asked} was requested, which {device} does not support: set the precision to auto")
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if can_hold(device, torch.bfloat16) else torch.float16
    is_faster = base_bytes >= LARGE_BYTES and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if is_faster else torch.float32


def can_hold(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device supports base models in `dtype`. Every CPU supports all, if slowly."""
    return dtype != torch.bfloat16 or device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def repeat_exactly() -> None:
    """Use deterministic kernels on CUDA for the rest of this process. They are slower.

    https://docs.pytorch.org/docs/stable/notes/randomness.html. Call it before the first product on the device, because
    cuBLAS reads its environment variable then, and torch raises errors otherwise.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def probe(device: str = "auto", *, deterministic: bool = False) -> DeviceReport:
    """Test the device with a small product. Raises BackendFailed if it fails or the result is wrong."""
    chosen = choose(device)
    configure(chosen, deterministic=deterministic)
    kept = precision(chosen)
    try:
        took = _try(chosen)
        name, memory = _describe(chosen)
    except RuntimeError as error:  # torch's CUDA errors are RuntimeErrors
        raise BackendFailed(f"the device {chosen} does not work: {str(error)[:200]}") from error
    gib, trial = memory / 2**30, f"product ok, {took:.1f} ms"
    short = str(kept).removeprefix("torch.")
    if chosen.type == "cuda":
        text = f"CUDA: {name}, {gib:.0f} GiB, base models in {short}; {trial}"
    else:
        why = "CUDA is not available" if not torch.cuda.is_available() else "CUDA was not requested"
        text = f"{why}: training on the CPU ({torch.get_num_threads()} threads, {gib:.0f} GiB); {trial}"
        if os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE":
            # On shared cores, spinning OpenMP threads make a training 5 to 7 times slower.
            text += ". Set OMP_WAIT_POLICY=PASSIVE where cores are shared"
    return DeviceReport(chosen.type, name, memory, short, took, text)


def card_facts(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Facts for reports of card problems: versions, and the attention implementation for `dtype`."""
    facts = {"torch": torch.__version__, "attention": _attention(device, dtype), "precision": str(dtype).split(".")[1]}
    if device.type == "cuda":
        capability = ".".join(str(part) for part in torch.cuda.get_device_capability(device))
        facts = {"capability": capability, "driver": _driver(), "CUDA": torch.version.cuda or "none", **facts}
    return facts


def _attention(device: torch.device, dtype: torch.dtype) -> str:
    """The implementation that torch chooses for the largest attention layer of sd15 at 512 pixels."""
    query = torch.empty(1, 8, 4096, 40, device=device, dtype=dtype, requires_grad=True)
    try:
        chosen = SDPBackend(torch._fused_sdp_choice(query, query, query))
    except (AttributeError, RuntimeError, ValueError):  # not a public function of PyTorch
        return "unknown"
    return chosen.name.lower().removesuffix("_attention")


def _driver() -> str:
    """The version of the NVIDIA driver, from its kernel module."""
    try:
        match = _DRIVER.search(Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return "unknown"
    return match.group() if match else "unknown"


def _try(device: torch.device) -> float:
    """Compute a product with a known result, (i + j) times ones; returns milliseconds."""
    numbers = torch.arange(_SIDE, dtype=torch.float32)
    left = (numbers[:, None] + numbers[None, :]).to(device)
    ones = torch.ones(_SIDE, _SIDE, device=device)
    took = 0.0
    for _ in range(2):
        begun = time.perf_counter()
        made = (left @ ones)[:, 0].cpu()  # the copy waits for the device
        took = (time.perf_counter() - begun) * 1e3
    wanted = _SIDE * numbers + numbers.sum()
    # TF32 keeps 10 bits of each factor, so the relative error stays within 2e-3.
    if not torch.allclose(made, wanted, rtol=2e-3):
        raise BackendFailed(f"the device {device} computes wrong results: take it out of service")
    return took


def _describe(device: torch.device) -> tuple[str, int]:
    """The name of the device, and its memory in bytes."""
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return str(facts.name), int(facts.total_memory)
    return "CPU", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
