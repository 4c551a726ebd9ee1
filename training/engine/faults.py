"""Tell kinds of errors apart, and release the memory that an error references."""

import gc
from collections.abc import Iterator

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host ran out of memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def is_device_error(error: BaseException) -> bool:
    """Whether the device itself failed: its context is lost, and every later call raises the same error."""
    return not is_out_of_memory(error) and (isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error))


def without_frames(error: BaseException) -> BaseException:
    """The error without tracebacks, which reference every tensor of the step that raised it."""
    for one in _chain(error):
        one.__traceback__ = None
    return error


def free_memory(device: torch.device) -> None:
    """Return memory that nothing references to the device. Call it outside the `except` block."""
    gc.collect()  # modules, hooks and graphs reference each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    left = [error]
    while left:
        one = left.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            left += [other for other in (one.__cause__, one.__context__) if other is not None]
