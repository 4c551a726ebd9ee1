"""A free port for a server that this machine starts."""

import random
import socket
from contextlib import suppress

_PORTS = range(20_000, 32_000)


def free_port() -> int:
    """A loopback port that is free now. Another process may take it first: be ready to try again. Raises OSError.

    It lies below the range from which Linux takes ports for outgoing connections, so that no connection gets the port
    while its server is down for a restart.
    """
    for port in random.SystemRandom().sample(_PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no free port between {_PORTS.start} and {_PORTS.stop - 1}")


def is_free(host: str, port: int) -> bool:
    """Whether a server can listen on this port now."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one of a server that has just ended
            probe.bind(address)
    except OSError:
        return False
    return True
