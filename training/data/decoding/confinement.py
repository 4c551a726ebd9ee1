"""Confinement of a process before it reads untrusted bytes: it gives up files, network and memory.

Every limit that the system supports is applied (macOS supports only some). The process cannot undo them, except its
timers, so the parent has a timeout of its own.
"""

import ctypes
import os
import resource
import signal
import struct
import sys
from contextlib import suppress
from pathlib import Path

# Constants of the Linux kernel; the same on every architecture.
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446


def confine(memory_bytes: int) -> list[str]:
    """Take away files, network and processes, and limit memory to `memory_bytes` more than is in use now.

    Returns the names of the limits in force. The process must have a single thread and must have imported everything.
    """
    held = []
    for number in (signal.SIGPROF, signal.SIGALRM, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # a child inherits ignored signals
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if sys.platform == "linux":
        # If memory runs out, the kernel kills this process, not the worker.
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        held += _limited("memory", resource.RLIMIT_AS, in_use + memory_bytes)
        held += _unprivileged()
    held += _limited("core", resource.RLIMIT_CORE, 0)
    held += _limited("file size", resource.RLIMIT_FSIZE, 0)
    held += _limited("processes", resource.RLIMIT_NPROC, 0)  # does not apply to root
    held += _limited("open files", resource.RLIMIT_NOFILE, 8)
    return held


def limit_time(processor_s: float, clock_s: float) -> None:
    """Have the kernel end this process after CPU time (SIGPROF) or wall time (SIGALRM) in seconds; 0: no limit.

    Uses timers, because RLIMIT_CPU counts whole seconds since the process began.
    """
    signal.setitimer(signal.ITIMER_PROF, processor_s)
    signal.setitimer(signal.ITIMER_REAL, clock_s)


def _limited(name: str, what: int, value: int) -> list[str]:
    with suppress(ValueError, OSError):
        resource.setrlimit(what, (value, value))
        return [name]
    return []


def _unprivileged() -> list[str]:
    """No new privileges, no network, no new files; as far as the kernel and the container allow."""
    held, libc = [], ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        held.append("no new rights")
    # A network namespace without even a loopback. In a user namespace this needs no privilege.
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0:
        held.append("no network")
    return held + _landlocked(libc)


def _landlocked(libc: ctypes.CDLL) -> list[str]:
    """Landlock without rules, which denies everything that it can. https://docs.kernel.org/userspace-api/landlock.html"""
    libc.syscall.restype = ctypes.c_long
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        return []
    # The access rights of each version: files; TCP bind and connect; signals and abstract sockets.
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    handled = struct.pack("=QQQ", files, 0b11, 0b11)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    rules = libc.syscall(_LANDLOCK_CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), ctypes.c_uint32(0))
    if rules < 0:
        return []
    refused = libc.syscall(_LANDLOCK_RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0))
    os.close(rules)
    return ["no files"] if refused == 0 else []
