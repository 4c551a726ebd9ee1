"""The fake RunPod that ships with the code, as a process of a test's own, and ways to look at it and to trouble it."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests.servers.process import ServerProcess

ROOT = Path(__file__).resolve().parents[2]
KEY = "rpa_TEST_KEY"


class RunPodServer:
    """Faults are those of `fakes.runpod.cloud.RunPodFaults`; pods run for real."""

    def __init__(self, folder: Path, seed: int, pods: dict[str, Any], faults: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "runpod.log"
        log.unlink(missing_ok=True)
        given = ["--key", KEY, "--seed", str(seed), "--faults", json.dumps(faults), "--pods", json.dumps(pods)]
        self.process = ServerProcess([sys.executable, "-m", "fakes.runpod.server", *given], log=log, cwd=ROOT)
        self.process.wait_until(lambda: b'{"url"' in log.read_bytes(), 60)
        text = next(line for line in log.read_text().splitlines() if line.startswith('{"url"'))
        self.base = json.loads(text)["url"]
        self.http = httpx2.Client(base_url=self.base, trust_env=False, timeout=30)

    @property
    def url(self) -> str:
        return f"{self.base}/v2"

    @property
    def environment(self) -> dict[str, str]:
        """The settings of an Imprint that rents here."""
        return {
            "IMPRINT_RUNPOD_API_KEY": KEY,
            "IMPRINT_RUNPOD_URL": self.url,
            "IMPRINT_POD_PROXY": f"{self.base}/proxy/{{pod_id}}",
        }

    def ledger(self) -> list[dict[str, Any]]:
        """All pods that were ever rented, oldest first; `left` of those that are still there."""
        pods: list[dict[str, Any]] = self.http.get("/fake/ledger").json()["pods"]
        return pods

    def calls(self) -> int:
        """Calls of the API in the last minute."""
        return int(self.http.get("/fake/ledger").json()["calls"])

    def left(self) -> list[str]:
        return [pod["name"] for pod in self.ledger() if pod["left"]]

    def order(self, **faults: list[str]) -> None:
        """Faults for the next calls: `order(create=["lost", "503"])`; also list, get, delete and gpus."""
        self.http.post("/fake/next", json=faults).raise_for_status()

    def change(self, pod_id: str, status: str) -> None:
        """Let a pod be EXITED or ERROR, or `vanished`."""
        self.http.post(f"/fake/pods/{pod_id}", json={"status": status}).raise_for_status()

    def end(self) -> None:
        self.http.close()
        self.process.end()


@contextmanager
def runpod_server(
    folder: Path, seed: int = 0, pods: dict[str, Any] | None = None, **faults: Any
) -> Iterator[RunPodServer]:
    """A fake RunPod for a `with` block; its pods, with the options `pods`, end with it."""
    made = RunPodServer(folder, seed, pods or {}, faults)
    try:
        yield made
    finally:
        made.end()
