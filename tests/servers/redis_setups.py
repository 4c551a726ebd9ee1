"""Redis as operators set it up: over TLS, and with a replica that a Sentinel makes the master."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers.certificates import Certificates
from tests.servers.process import ServerProcess, free_port
from tests.servers.redis import server_program

GROUP = "imprint"


@contextmanager
def redis_over_tls(folder: Path, certificates: Certificates) -> Iterator[str]:
    """A server that answers on `localhost` over TLS only. Yields its address, without parameters."""
    port = free_port()
    lines = [
        "bind 127.0.0.1",
        "port 0",
        f"tls-port {port}",
        f"tls-cert-file {certificates.certificate}",
        f"tls-key-file {certificates.key}",
        f"tls-ca-cert-file {certificates.authority}",
        "tls-auth-clients no",
    ]
    ready = lambda: _answers(port, ssl=True, ssl_ca_certs=str(certificates.authority), host="localhost")  # noqa: E731
    with _running(folder, lines, ready):
        yield f"rediss://localhost:{port}/0"


@dataclass
class Sentinel:
    """A group of two servers and their Sentinel."""

    address: str
    password: str
    master: ServerProcess
    sentinel_port: int

    def master_port(self) -> int:
        """The port of the server that the Sentinel names now."""
        with redis.Redis(port=self.sentinel_port, socket_timeout=2) as client:
            return int(client.sentinel_get_master_addr_by_name(GROUP)[1])


@contextmanager
def redis_sentinel(folder: Path) -> Iterator[Sentinel]:
    """A master, a replica and one Sentinel, which makes the replica the master when that is gone for a second."""
    master, replica, sentinel, password = free_port(), free_port(), free_port(), "sentinel-password"
    common = [
        "bind 127.0.0.1",
        f"requirepass {password}",
        f"masterauth {password}",
        'save ""',
        "repl-diskless-sync-delay 0",
    ]
    watched = [
        "bind 127.0.0.1",
        f"port {sentinel}",
        f"sentinel monitor {GROUP} 127.0.0.1 {master} 1",
        f"sentinel auth-pass {GROUP} {password}",
        f"sentinel down-after-milliseconds {GROUP} 1000",
        f"sentinel failover-timeout {GROUP} 5000",
    ]

    def is_copy() -> bool:
        with suppress(redis.RedisError, OSError), redis.Redis(port=replica, password=password) as client:
            return bool(client.info("replication").get("master_link_status") == "up")
        return False

    def knows_both() -> bool:
        with suppress(redis.RedisError, OSError), redis.Redis(port=sentinel) as client:
            return len(client.sentinel_slaves(GROUP)) == 1
        return False

    with ExitStack() as stack:
        first = stack.enter_context(
            _running(folder / "master", [*common, f"port {master}"], lambda: _answers(master, password=password))
        )
        stack.enter_context(
            _running(folder / "replica", [*common, f"port {replica}", f"replicaof 127.0.0.1 {master}"], is_copy)
        )
        stack.enter_context(_running(folder / "sentinel", watched, knows_both, "--sentinel"))
        address = f"sentinel://:{password}@127.0.0.1:{sentinel}/0?master_name={GROUP}"
        yield Sentinel(address, password, first, sentinel)


def _answers(port: int, **options: object) -> bool:
    with (
        suppress(redis.RedisError, OSError),
        redis.Redis(port=port, socket_timeout=1, retry=Retry(NoBackoff(), 0), **options) as client,  # type: ignore[arg-type]
    ):
        return bool(client.ping())
    return False


@contextmanager
def _running(
    folder: Path, lines: list[str], answers: Callable[[], bool], *arguments: str, timeout_s: float = 60
) -> Iterator[ServerProcess]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "redis.conf").write_text("\n".join([*lines, f"dir {folder.resolve()}", "daemonize no"]) + "\n")
    process = ServerProcess(
        [server_program(), "redis.conf", *arguments], log=folder / "redis.log", cwd=folder, env=dict(os.environ)
    )
    try:
        process.wait_until(answers, timeout_s)
        yield process
    finally:
        process.end()
