"""An ai-toolkit server to test against: the fake one, or a real one where IMPRINT_TEST_AI_TOOLKIT_URL names it.

A real one needs a GPU and fetches Stable Diffusion 1.5 from the hub; its password is IMPRINT_TEST_AI_TOOLKIT_TOKEN.
Tests of what goes wrong run on the fake alone.
"""

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from core.errors import BackendFailed, BackendUnreachable
from tests.servers.fake_pod import FakePod, fake_pod
from tests.unit.drawings import drawing, encoded
from training.backends.ai_toolkit import work
from training.backends.ai_toolkit.connection import open_toolkit_client
from training.backends.ai_toolkit.server import ToolkitServer
from training.backends.ai_toolkit.work import RemoteTraining
from training.ports import Example
from training.spec import TrainSpec

URL = os.environ.get("IMPRINT_TEST_AI_TOOLKIT_URL")
TOKEN = os.environ.get("IMPRINT_TEST_AI_TOOLKIT_TOKEN")
PATIENCE_S = 3000.0 if URL else 120.0

Orders = Callable[..., RemoteTraining]


@pytest.fixture(scope="session")
def http() -> Iterator[httpx2.Client]:
    with open_toolkit_client(timeout_s=60) as client:
        yield client


@pytest.fixture(scope="session")
def hasty() -> Iterator[httpx2.Client]:
    """A client that waits two seconds for an answer."""
    with open_toolkit_client(timeout_s=2) as client:
        yield client


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakePod]:
    """A fake server for one module's tests, quick to train, patient in hanging."""
    with fake_pod(tmp_path_factory.mktemp("pod"), seconds_per_step=0.01, tick=0.02, loading=0.05, hang=30) as made:
        yield made


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    folder = tmp_path_factory.mktemp("pictures")
    return [_example(folder / f"{number}.png", number) for number in range(5)]


def _example(path: Path, number: int) -> Example:
    path.write_bytes(encoded(drawing(number, 512)))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Example(path, f"sks mascot, pose {number}, ünïcödé", digest, 512, 512)


@pytest.fixture
def order(examples: list[Example]) -> Orders:
    """An order with a name of its own."""

    def make(**given: Any) -> RemoteTraining:
        recipe = {"base_model": "sd15", "trigger_word": "sks mascot", "seed": 1, "max_steps": 12, **given}
        name = work.remote_name(f"job_{secrets.token_hex(8)}", 1)
        return RemoteTraining(name, TrainSpec(**recipe), examples, "stable-diffusion-v1-5/stable-diffusion-v1-5")

    return make


@pytest.fixture(params=["real"] if URL else ["fake", "old fake"])
def server(request: pytest.FixtureRequest, tmp_path: Path, http: httpx2.Client) -> Iterator[ToolkitServer]:
    """Any server that speaks the API; jobs that a failed test leaves behind are removed from a real one."""
    if URL:
        real = ToolkitServer(URL, TOKEN, http)
        before = set(real.jobs())
        yield real
        for name in set(real.jobs()) - before:
            with suppress(BackendFailed, BackendUnreachable):
                work.clear(real, name)
        return
    # Slow enough to be caught running.
    options = {"seconds_per_step": 0.05, "tick": 0.02, "old_api": request.param == "old fake"}
    with fake_pod(tmp_path / "pod", **{name: value for name, value in options.items() if value}) as pod:
        yield ToolkitServer(pod.url, pod.token, http)
