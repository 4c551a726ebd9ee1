"""Which processes the stack of one machine has: their commands, ports and addresses."""

import secrets
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from core.errors import BackendUnreachable
from core.free_port import free_port, is_free
from core.settings import Settings
from tasks.workers.kinds import KINDS


@dataclass
class Member:
    """One process of the stack."""

    name: str
    arguments: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    command: Sequence[str] = ("celery", "-A", "tasks.app")  # a module for `python -m`, and its first arguments
    process: "subprocess.Popen[bytes] | None" = None


class Layout:
    """The processes that the settings ask for, and the addresses of those that serve pages."""

    def __init__(self, configured: Settings, *, flower: bool = True, web: bool = True) -> None:
        self._settings = configured
        self.flower_url = ""
        self.flower_login = ""
        self.web_url = ""
        self.notes: list[str] = []  # for people, about what is not as usual
        self.members = members = [
            *(self._worker(name) for name in ("io", "fetch", "train")),
            Member("beat", ["beat", "--loglevel", "WARNING"]),
        ]
        if not _has_card(self._settings):
            members.append(self._worker("draw", IMPRINT_DEVICE="cpu"))
        if flower:
            members.append(self._flower())
        if web:
            members.append(self._web())
        if self._settings.ingress_url is not None:
            members.append(Member("ingress", ["imprint", "ingress"]))
        self._share_ports()

    def _worker(self, name: str, **environment: str) -> Member:
        return Member(name, KINDS[name].arguments(self._settings.log_level, self._settings.io_concurrency), environment)

    def _share_ports(self) -> None:
        """Give each member its own port for Prometheus, if one is configured."""
        first = self._settings.metrics_port
        if first is None:
            return
        names = {member.name for member in self.members}
        order = [name for name in ("train", "io", "web", "fetch", "draw") if name in names]
        for member in self.members:
            if member.name in order:
                member.environment["IMPRINT_METRICS_PORT"] = str(first and first + order.index(member.name))

    def _web(self) -> Member:
        host = self._settings.web_host
        port = self._settings.web_port or free_port()
        if self._settings.web_port and not is_free(host, port):
            if "web_port" in self._settings.model_fields_set:
                raise BackendUnreachable(
                    f"port {port} is taken by another program: stop it, or set IMPRINT_WEB_PORT to a free port (0 "
                    "picks one)"
                )
            self.notes.append(f"Port {port} is taken by another program, so the page has another one.")
            port = free_port()
        self.web_url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"  # noqa: S104 - compared
        environment = {"IMPRINT_WEB_PORT": str(port)}
        if self.flower_url and self._settings.flower_url is None:
            environment["IMPRINT_FLOWER_URL"] = self.flower_url
        return Member("web", [], environment, command=("web",))

    def _flower(self) -> Member:
        port = self._settings.flower_port or free_port()
        login = self._settings.flower_auth
        self.flower_login = login.get_secret_value() if login else f"imprint:{secrets.token_urlsafe(9)}"
        self.flower_url = f"http://127.0.0.1:{port}"
        # By the environment: every user of the machine can see a login on the command line.
        return Member(
            "flower",
            ["flower", f"--port={port}", "--address=127.0.0.1", "--logging=warning"],
            {"FLOWER_BASIC_AUTH": self.flower_login},
        )


def _has_card(configured: Settings) -> bool:
    """Whether training workers of this machine have a GPU, without torch."""
    cards = (*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("dxg"))  # the second in Windows' Linux
    return configured.device != "cpu" and bool(cards)
