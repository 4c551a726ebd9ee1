"""Threads that a process cannot work without: if one ends, this is logged, and the process ends too.

Without such a thread a process would run on half broken: leases expire under running trainings, messages stay unsent. A
process that has ended is visible, and is restarted by the stack, systemd or Kubernetes; other workers take its jobs.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from traceback import format_exception

log = logging.getLogger(__name__)

EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h
_GRACE_S = 60.0  # trainings write a checkpoint and hand over


def start(name: str, run: Callable[[], None], *, may_return: bool = False) -> threading.Thread:
    """Start a thread that never ends. If `run` raises, or returns although it may not, the process ends."""
    thread = threading.Thread(target=_supervised, args=(name, run, may_return), name=name, daemon=True)
    thread.start()
    return thread


def _supervised(name: str, run: Callable[[], None], may_return: bool) -> None:
    try:
        run()
    except BaseException as error:  # noqa: BLE001 - whatever it is, the thread is gone
        end_process(name, error)
    else:
        if not may_return:
            end_process(name, None)


def end_process(name: str, error: BaseException | None) -> None:
    """End this process because an essential part of it has ended: asked first, then at once. Does not return."""
    reason = "".join(format_exception(error)) if error is not None else "it returned\n"
    text = f"the thread {name!r} of process {os.getpid()} has ended, so the process ends: {reason}"
    with contextlib.suppress(Exception):
        log.critical("%s", text)
    with contextlib.suppress(OSError):
        os.write(2, text.encode(errors="replace"))  # also if logging itself has failed
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(EXIT_CODE)
