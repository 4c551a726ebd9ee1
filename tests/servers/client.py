"""`client.py MODULE|FILE.py …`: what `python -m MODULE …` or `python FILE.py …` does, forked by the test's launcher.

A page's script types dozens of commands, and each would pay seconds for its imports: this file imports next to nothing.
shell.py puts it on PATH as `celery` and `python`, and hands the launcher's socket on to the script.
"""

import json
import os
import signal
import socket
import sys


def main(argv: list[str]) -> int:
    """The program's exit status; as in a shell, 128 and the number of a signal that ended it."""
    launcher = socket.socket(fileno=int(os.environ["IMPRINT_TEST_LAUNCHER"]))
    environment = {name: value for name, value in os.environ.items() if name != "IMPRINT_TEST_LAUNCHER"}
    request = {"argv": argv, "cwd": os.getcwd(), "env": environment}  # noqa: PTH109 - pathlib takes long to import
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    socket.send_fds(launcher, [json.dumps(request).encode()], [1, 2, theirs.fileno()])
    theirs.close()
    pid = int(ours.recv(64))
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    code = os.waitstatus_to_exitcode(int(ours.recv(64)))
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
