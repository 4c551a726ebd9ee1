"""How a process gives up what it will not need, before it touches a stranger's bytes.

Every limit that this system has is taken; one that it lacks (macOS knows only some) is left out. Nothing here can be
undone by the process itself, except its timers: who waits for it has a clock of their own.
"""

import ctypes
import os
import resource
import signal
import struct
import sys
from contextlib import suppress
from pathlib import Path

# Numbers of the Linux kernel's interface; the same on every processor.
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446


def confine(memory_bytes: int) -> list[str]:
    """Take away files, network, processes and memory beyond `memory_bytes` more than are in use now.

    Gives the names of what is in force. The process must have one thread only, and everything imported.
    """
    held = []
    for number in (signal.SIGPROF, signal.SIGALRM, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # a parent that ignores one hands that down
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if sys.platform == "linux":
        # If memory runs out, this process is the one to go, not the worker beside it.
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        held += _limited("memory", resource.RLIMIT_AS, in_use + memory_bytes)
        held += _unprivileged()
    held += _limited("core", resource.RLIMIT_CORE, 0)
    held += _limited("file size", resource.RLIMIT_FSIZE, 0)
    held += _limited("processes", resource.RLIMIT_NPROC, 0)  # root is not bound by it
    held += _limited("open files", resource.RLIMIT_NOFILE, 8)
    return held


def limit_time(processor_s: float, clock_s: float) -> None:
    """Let the kernel end this process after so much processor time (SIGPROF) or so long (SIGALRM); 0 is no limit.

    Timers, for RLIMIT_CPU counts whole seconds since the process began.
    """
    signal.setitimer(signal.ITIMER_PROF, processor_s)
    signal.setitimer(signal.ITIMER_REAL, clock_s)


def _limited(name: str, what: int, value: int) -> list[str]:
    with suppress(ValueError, OSError):
        resource.setrlimit(what, (value, value))
        return [name]
    return []


def _unprivileged() -> list[str]:
    """No new rights, no network and no file that is not open already; as far as this kernel, and a container, allow."""
    held, libc = [], ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        held.append("no new rights")
    # A network of its own that has not even a loopback; the user namespace makes that anybody's right.
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0:
        held.append("no network")
    return held + _landlocked(libc)


def _landlocked(libc: ctypes.CDLL) -> list[str]:
    """Landlock with no rule: whatever it can refuse is refused. https://docs.kernel.org/userspace-api/landlock.html"""
    libc.syscall.restype = ctypes.c_long
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        return []
    # How many kinds of access each version knows: to files; binding and connecting over TCP; signals and sockets.
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    handled = struct.pack("=QQQ", files, 0b11, 0b11)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    rules = libc.syscall(_LANDLOCK_CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), ctypes.c_uint32(0))
    if rules < 0:
        return []
    refused = libc.syscall(_LANDLOCK_RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0))
    os.close(rules)
    return ["no files"] if refused == 0 else []
