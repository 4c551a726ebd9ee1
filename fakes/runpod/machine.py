"""One pod of the fake RunPod: its request, its costs and a process with the fake ai-toolkit server."""

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.brokers.embedded_broker import die_with_parent
from core.free_port import free_port

PodOptions = dict[str, Any]  # of fakes.ai_toolkit.options, as JSON; `faults` is a seed, increased by one per pod


@dataclass
class Machine:
    """A pod. Times are seconds since 1970; the price is in dollars per hour."""

    id: str
    order: dict[str, Any]
    price: float
    folder: Path
    options: PodOptions
    created_at: float = field(default_factory=time.time)
    status: str = "PROVISIONING"
    started_at: float | None = None
    ended_at: float | None = None  # end of billing
    how: str | None = None  # deleted, vanished, EXITED, ERROR
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = None

    @classmethod
    def new(
        cls, rng: random.Random, order: dict[str, Any], price: float, folder: Path, options: PodOptions
    ) -> "Machine":
        made = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=14))
        return cls(made, order, price, folder / made, options | {"gpu": order["gpu"]["id"]})

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port or 1}"  # nothing listens on port 1

    def start_after(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(seconds / 2, self._begin)
        loop.call_later(seconds, self._run)

    def _begin(self) -> None:
        if self.status == "PROVISIONING":
            self.status = "STARTING"

    def _run(self) -> None:
        """Start the container. RUNNING does not mean that its server answers yet."""
        if self.ended_at is not None:
            return
        self.port = free_port()
        self.folder.mkdir(parents=True, exist_ok=True)
        arguments = [str(self.port), str(self.folder), json.dumps(self.options)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fakes.runpod.machine", *arguments],
                env=os.environ | self.order.get("env", {}),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip
        self.status, self.started_at = "RUNNING", time.time()

    def end(self, status: str, how: str | None = None) -> None:
        """Stop the pod and its billing."""
        self.stop()
        self.status, self.ended_at, self.how = status, self.ended_at or time.time(), how or status
        if status == "TERMINATED":
            shutil.rmtree(self.folder, ignore_errors=True)  # the disk is deleted with the container

    def stop(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process, self.port = None, 0

    def as_pod(self) -> dict[str, Any]:
        """The pod as the API describes it."""
        if self.process is not None and self.process.poll() is not None:
            self.end("EXITED")
        runs = self.ended_at is None
        return {
            "id": self.id, "name": self.order["name"], "status": self.status,
            "actions": ["stop", "restart", "terminate"] if runs else ["start", "terminate"],
            "image": self.order.get("image", ""), "args": "", "disk": self.order.get("disk", 20),
            "ports": self.order.get("ports", []), "env": self.order.get("env", {}), "mounts": {}, "registry": None,
            "gpu": {"id": self.order["gpu"]["id"], "count": 1}, "cloud": "SECURE", "dataCenterId": "FAKE-1",
            "cudaVersion": "13.0", "ssh": {"proxy": None, "direct": None}, "template": None,
            "cost": self.price if runs else 0.0, "locked": False, "globalNetworking": {"enabled": False},
            "runtime": {"uptime": int(time.time() - self.started_at)} if self.status == "RUNNING" and self.started_at
            else None,
            "createdAt": _iso(self.created_at), "startedAt": _iso(self.started_at) if self.started_at else None,
        }  # fmt: skip

    def as_entry(self) -> dict[str, Any]:
        """The pod as the ledger describes it. `left`: it still exists and must be deleted."""
        billed_s = (self.ended_at or time.time()) - self.created_at
        return {
            "id": self.id, "name": self.order["name"], "gpu": self.order["gpu"]["id"], "status": self.status,
            "left": self.status != "TERMINATED", "end": self.how, "created_at": self.created_at,
            "ended_at": self.ended_at, "seconds": billed_s, "price": self.price,
            "microdollars": round(self.price * 1_000_000 * billed_s / 3600),
        }  # fmt: skip


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def main() -> None:
    """The container: the fake ai-toolkit server, with its password from the environment, as in the real image."""
    from fakes.ai_toolkit import options, pod  # slow to import

    port, folder, given = sys.argv[1:]
    options_given = json.loads(given)
    for name in ("base_model", "journal"):
        if options_given.get(name):
            options_given[name] = Path(options_given[name])
    made = options.FakeToolkitOptions(folder=Path(folder), token=os.environ.get("AI_TOOLKIT_AUTH"), **options_given)
    pod.serve_pod(made, port=int(port), announce=lambda url: print(url, flush=True))


if __name__ == "__main__":
    main()
