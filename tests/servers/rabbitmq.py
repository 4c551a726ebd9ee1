"""A private RabbitMQ node that a test may kill, restart and pause, with an epmd of its own."""

import os
import secrets
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import amqp

from tests.servers.process import NotStarted, Server, ServerProcess, free_port


@dataclass
class Peers:
    """What nodes share that find each other: a name server (epmd), a home with the Erlang cookie, and their names."""

    home: Path
    epmd_port: int = field(default_factory=free_port)
    names: list[str] = field(default_factory=list)

    def epmd(self, env: dict[str, str]) -> ServerProcess:
        # In the foreground, so that it ends with us: a node that finds none starts a daemon.
        argv = ["epmd", "-port", str(self.epmd_port), "-address", "127.0.0.1"]
        process = ServerProcess(argv, log=self.home / "epmd.log", cwd=self.home, env=env)
        process.wait_until(lambda: _listens(self.epmd_port), 10.0)
        return process


class RabbitServer(Server):
    """One node in one folder. Durable queues outlive `kill` and `stop`; node name and ports stay the same.

    With `peers` it is a node of their cluster, and whoever made them runs their epmd.
    """

    def __init__(self, folder: Path, *, port: int | None, config: Sequence[str], peers: Peers | None = None) -> None:
        self.folder = folder.resolve()
        self.node = f"imprint-{secrets.token_hex(4)}"
        self.port = port or free_port()
        self.config = config
        self._distribution_port = free_port()
        self._own_epmd = peers is None
        self._peers = peers or Peers(self.folder)
        self._peers.names.append(self.node)
        self._processes: list[ServerProcess] = []  # epmd, then the node

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    @property
    def pid(self) -> int | None:
        """Of the node's process (beam)."""
        return self._processes[-1].pid if self._processes else None

    def start(self, timeout_s: float = 60.0) -> None:
        """Returns when AMQP answers (5 to 10 s); NotStarted with its log if it ends before that."""
        if self._processes:
            raise RuntimeError(f"the node on port {self.port} runs already")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "rabbitmq.conf").write_text("\n".join(["log.console.level = warning", *self.config]) + "\n")
        (self.folder / "enabled_plugins").write_text("[].\n")
        env = self._environment()
        try:
            if self._own_epmd:
                self._processes.append(self._peers.epmd(env))
            node = ServerProcess([_program()], log=self.folder / "rabbitmq-server.log", cwd=self.folder, env=env)
            self._processes.append(node)
            node.wait_until(self._answers, timeout_s)
        except NotStarted:
            self._end(kill=True)
            raise

    def _signal(self, number: int) -> None:
        if not self._processes:
            raise RuntimeError("the node does not run")
        self._processes[-1].signal(number)

    def _end(self, *, kill: bool) -> None:
        while self._processes:
            self._processes.pop().end(kill=kill, timeout_s=30.0)

    def _answers(self) -> bool:
        """True when *this* node answers: another program may have taken the port in the meantime.

        A cluster has the name of its first node.
        """
        with (
            suppress(OSError, amqp.AMQPError),
            amqp.Connection(f"127.0.0.1:{self.port}", connect_timeout=2, read_timeout=2, write_timeout=2) as connection,
        ):
            return str(connection.server_properties.get("cluster_name", "")).partition("@")[0] in self._peers.names
        return False

    def _environment(self) -> dict[str, str]:
        """All that the node would otherwise share with one of the system: names, ports, folders, cookie."""
        own = {
            "HOME": self._peers.home,  # the Erlang cookie is made here
            "RABBITMQ_NODENAME": f"{self.node}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": self.port,
            "RABBITMQ_DIST_PORT": self._distribution_port,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_MNESIA_BASE": self.folder / "data",
            "RABBITMQ_LOG_BASE": self.folder / "log",
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": self.folder / "rabbitmq.pid",
            "RABBITMQ_CONF_ENV_FILE": self.folder / "no-such-file",
            "RABBITMQ_CONFIG_FILE": self.folder / "rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self.folder / "enabled_plugins",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": self._peers.epmd_port,
            # The start script becomes the node instead of watching it, so that signals reach the node.
            "RUNNING_UNDER_SYSTEMD": "true",
        }
        theirs = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
        return theirs | {name: str(value) for name, value in own.items()}


@contextmanager
def rabbitmq_cluster(folder: Path, size: int) -> Iterator[list[RabbitServer]]:
    """Running nodes that have found each other; each can be killed and started by itself."""
    peers = Peers(folder)
    servers = [RabbitServer(folder / f"node-{number}", port=None, config=(), peers=peers) for number in range(size)]
    first = f"cluster_formation.classic_config.nodes.1 = {servers[0].node}@localhost"
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        epmd = peers.epmd(dict(os.environ))
        stack.callback(epmd.end, kill=False, timeout_s=30.0)
        for server in servers:
            server.config = ["cluster_formation.peer_discovery_backend = classic_config", first]
            server.start()
            stack.callback(server.stop)
        yield servers


def _program() -> str:
    """The start script itself: the one on Debian's PATH is a wrapper that insists on the user `rabbitmq`."""
    inner = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    program = str(inner) if inner.exists() else shutil.which("rabbitmq-server")
    if program is None:
        raise NotStarted("there is no rabbitmq-server on this machine: `make test` installs it")
    return program


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextmanager
def rabbitmq_server(folder: Path, *, port: int | None = None, config: Sequence[str] = ()) -> Iterator[RabbitServer]:
    """A running node for a `with` block; `config` are lines of rabbitmq.conf. Without `port`, a free one."""
    for attempt in range(3):
        server = RabbitServer(folder / f"node-{attempt}", port=port, config=config)
        try:
            server.start()
            break
        except NotStarted:
            if port is not None or attempt == 2:
                raise
    try:
        yield server
    finally:
        server.stop()
