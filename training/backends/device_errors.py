"""Errors of torch and Python on a device, as errors that say what the owner can do."""

from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import DeviceLost, OutOfMemory
from training import device_failure
from training.engine.faults import is_device_error, is_out_of_memory


@contextmanager
def device_errors(too_small: str) -> Iterator[None]:
    """Raise OutOfMemory with the text `too_small` if memory runs out, and DeviceLost if the device fails.

    Without the frames that reference tensors, so that their memory can be freed.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_device_error(error):
            device_failure.report(f"{type(error).__name__}: {str(error)[:200]}")
            raise DeviceLost("the device of the worker failed; another worker continues") from None
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(too_small) from None
