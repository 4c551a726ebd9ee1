"""What kind of error a step ended with, and letting go of what the error holds."""

import gc
from collections.abc import Iterator

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the device or of the host."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def is_device_error(error: BaseException) -> bool:
    """Whether the device itself failed: its context is lost, and every later call raises the same."""
    return not is_out_of_memory(error) and (isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error))


def without_frames(error: BaseException) -> BaseException:
    """The error without its tracebacks, which hold every tensor of the step that raised it."""
    for one in _chain(error):
        one.__traceback__ = None
    return error


def free_memory(device: torch.device) -> None:
    """Give the device back what nothing refers to any more. Call it outside of the `except` block."""
    gc.collect()  # modules, hooks and graphs refer to each other
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
