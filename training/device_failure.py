"""A device that failed in mid-training, told to the process around it. Without torch, so that any room may listen."""

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

_listeners: list[Callable[[str], None]] = []


def on_device_failure(listener: Callable[[str], None]) -> None:
    """Call `listener` with the reason when a device fails. A process cannot use such a device again: it should end."""
    _listeners.append(listener)


def report(reason: str) -> None:
    """Tell all listeners. Does not touch the device."""
    log.error("the device failed: %s", reason)
    for listener in _listeners:
        listener(reason)
