"""Notifies listeners when a device fails during training. Does not import torch, so any room may listen."""

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

_listeners: list[Callable[[str], None]] = []


def on_device_failure(listener: Callable[[str], None]) -> None:
    """Call `listener` with the reason when a device fails. The process cannot use the device again and should end."""
    _listeners.append(listener)


def report(reason: str) -> None:
    """Call all listeners. Does not use the device."""
    log.error("the device failed: %s", reason)
    for listener in _listeners:
        listener(reason)
