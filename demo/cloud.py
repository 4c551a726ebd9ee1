"""The fake RunPod of `make demo-remote`, on this machine."""

import json
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.brokers.embedded_broker import die_with_parent

ROOT = Path(__file__).resolve().parent.parent


class Cloud:
    """The fake RunPod, with pods that really train: Imprint's loop on a local base model, behind ai-toolkit's API."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key

    @property
    def environment(self) -> dict[str, str]:
        """Settings for an Imprint that rents pods here, polls often, and deletes idle pods soon."""
        return {
            "IMPRINT_BACKENDS": '{"sd15": "ai-toolkit"}',
            # Not the real one: the pods train the demo's small model, whose LoRA has fewer layers.
            "IMPRINT_BASE_MODELS": '{"sd15": "imprint/pocket"}',
            "IMPRINT_RUNPOD_API_KEY": self.key,
            "IMPRINT_RUNPOD_URL": f"{self.url}/v2",
            "IMPRINT_POD_PROXY": f"{self.url}/proxy/{{pod_id}}",
            "IMPRINT_POD_WARM_S": "1",
            "IMPRINT_REMOTE_POLL_S": "1",
            "IMPRINT_SWEEP_S": "2",
        }

    def pods(self) -> list[dict[str, Any]]:
        """All rented pods: `name`, `gpu`, `seconds`, `microdollars`, and `left`: whether the pod still exists."""
        with urllib.request.urlopen(f"{self.url}/fake/ledger", timeout=30) as answer:  # noqa: S310 - ours, on loopback
            pods: list[dict[str, Any]] = json.load(answer)["pods"]
            return pods


@contextmanager
def stand_in(base: Path) -> Iterator[Cloud]:
    """Run the fake RunPod. base: the folder of the base model that its pods train on."""
    key = f"demo-{secrets.token_hex(8)}"
    pods = json.dumps({"trainer": "real", "base_model": str(base), "tick_s": 0.2})
    server = subprocess.Popen(
        [sys.executable, "-m", "fakes.runpod.server", "--key", key, "--pods", pods],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C is for the demo, which ends this last
        preexec_fn=die_with_parent,
    )
    try:
        assert server.stdout is not None  # noqa: S101 - it is a pipe
        yield Cloud(json.loads(server.stdout.readline())["url"], key)
    finally:
        server.terminate()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()
