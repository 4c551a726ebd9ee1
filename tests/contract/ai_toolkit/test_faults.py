"""What goes wrong on the way to a server and on it: nothing is left, nobody waits for ever."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import httpx2
import pytest

from core.errors import BackendFailed, BackendUnreachable
from tests.contract.ai_toolkit.conftest import Orders
from tests.contract.ai_toolkit.watching import ended, was_done_once
from tests.servers.fake_pod import FakePod, fake_pod
from tests.servers.process import free_port
from tests.site import until
from training.backends.ai_toolkit import work
from training.backends.ai_toolkit.connection import open_toolkit_client
from training.backends.ai_toolkit.convert import convert_lora
from training.backends.ai_toolkit.server import ToolkitServer
from training.backends.ai_toolkit.work import RemoteTraining

T = TypeVar("T")


STALL_S = 10.0


class Parrot(httpx2.BaseTransport):
    """Gives one answer to everything."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status, self.body = status, body

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(self.status, stream=httpx2.ByteStream(self.body))


@pytest.fixture
def server(pod: FakePod, http: httpx2.Client) -> ToolkitServer:
    return ToolkitServer(pod.url, pod.token, http)


# ---- what is no answer -----------------------------------------------------------------------------------------------


def test_nobody_there(tmp_path: Path, hasty: httpx2.Client) -> None:
    silent = ToolkitServer(f"http://127.0.0.1:{free_port()}", "secret", hasty)
    assert not silent.ready()
    with pytest.raises(BackendUnreachable, match="cannot be reached"):
        silent.jobs()
    with fake_pod(tmp_path, ready_after=600) as pod:
        behind = ToolkitServer(pod.url, pod.token, hasty)
        assert not behind.ready()  # a proxy's 502
        with pytest.raises(BackendUnreachable, match="failed with status"):
            behind.jobs()


def test_the_password(pod: FakePod, http: httpx2.Client) -> None:
    for token in ("wrong-secret", None):
        stranger = ToolkitServer(pod.url, token, http)
        for call in (stranger.ready, stranger.jobs):
            with pytest.raises(BackendFailed, match="rejects the password") as failure:
                call()
            assert "secret" not in str(failure.value)
            assert "Unauthorized" not in repr(failure.value.details)
    for bad in ("two words", "", "ü"):
        with pytest.raises(BackendFailed, match="password"):
            ToolkitServer(pod.url, bad, http)
    for address in ("ftp://x", "nonsense", "", "http://", "http://user:pw@host"):
        with pytest.raises(BackendFailed, match="address"):
            ToolkitServer(address, None, http)


@pytest.fixture
def odd() -> Iterator[Callable[[int, bytes], ToolkitServer]]:
    """A server that answers everything alike."""
    clients = []

    def make(status: int, body: bytes) -> ToolkitServer:
        clients.append(httpx2.Client(transport=Parrot(status, body)))
        return ToolkitServer("http://odd.test", None, clients[-1])

    yield make
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b'{"jobs": [{}]}', b'{"jobs": 3}', b"null", b"[" * 100_000, b"\xff"]
)
def test_nonsense_is_a_failure_that_quotes_nothing(odd: Callable[[int, bytes], ToolkitServer], body: bytes) -> None:
    server = odd(200, body)
    calls: list[Callable[[], object]] = [
        server.jobs, server.folders, server.gpus, lambda: server.samples("x"), lambda: server.files("x"),
        lambda: server.log("x"), lambda: server.create_dataset("imprint_x"),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(BackendFailed, match="a response that ai-toolkit's API does not have"):
            call()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (404, b"<html>no such pod</html>", BackendUnreachable),
        (404, b'{"error": "Job not found"}', BackendFailed),
        (524, b"", BackendUnreachable),
        (429, b"", BackendUnreachable),
        (302, b"", BackendFailed),
        (400, b'{"error": "<secret>"}', BackendFailed),
    ],
)
def test_statuses(odd: Callable[[int, bytes], ToolkitServer], status: int, body: bytes, error: type[Exception]) -> None:
    with pytest.raises(error) as failure:
        odd(status, body).folders()
    assert failure.value.details == {"status": status}  # type: ignore[attr-defined]
    assert "secret" not in str(failure.value)


# ---- a job that goes wrong -------------------------------------------------------------------------------------------


def test_a_trainer_that_fails_and_a_worker_that_dies(pod: FakePod, server: ToolkitServer, order: Orders) -> None:
    fails, dies, waits = order(max_steps=40), order(max_steps=40), order()
    pod.fate(fails.name, "error")
    pod.fate(dies.name, "die")
    for ordered in (fails, dies, waits):
        work.submit(server, ordered)
    until(lambda: server.jobs()[dies.name].step >= 20, 120, "it dies half-way")
    seen = work.poll(server, server.jobs()[fails.name])
    assert (seen.status, seen.step) == ("failed", 20)  # the step of the last save, not the one that it came to
    assert "CUDA error" in seen.info
    stuck = work.poll(server, server.jobs()[dies.name])
    assert stuck.status == "running"
    later = work.poll(server, server.jobs()[dies.name], stuck.log_offset, stuck.step)
    later = work.poll(server, server.jobs()[dies.name], later.log_offset, later.step)
    assert (later.status, later.step, later.grew) == ("running", stuck.step, False)
    assert server.jobs()[waits.name].status == "queued"  # the row that nobody works on blocks the queue
    work.cancel(server, dies.name)
    assert work.poll(server, server.jobs()[dies.name]).status == "stopped"
    assert ended(server, waits.name) == "completed"
    for ordered in (fails, dies, waits):
        work.clear(server, ordered.name)
    assert pod.left() == {"jobs": [], "datasets": [], "outputs": []}


def test_a_queue_that_drained_runs_again_for_the_next_job(pod: FakePod, server: ToolkitServer, order: Orders) -> None:
    for _ in range(2):
        ordered = order()
        work.submit(server, ordered)
        assert ended(server, ordered.name) == "completed"
        until(lambda: server.queues() == {"0": False}, 60, "the queue stops when it has drained")
        work.clear(server, ordered.name)


def test_a_pod_that_vanishes_and_comes_back(tmp_path: Path, order: Orders, http: httpx2.Client) -> None:
    with fake_pod(tmp_path, seconds_per_step=0.05) as pod:
        server, ordered = ToolkitServer(pod.url, pod.token, http), order(max_steps=10_000)
        work.submit(server, ordered)
        until(lambda: server.jobs()[ordered.name].step > 0, 60, "it runs")
        pod.kill()
        assert not server.ready()
        for call in (server.jobs, lambda: work.clear(server, ordered.name)):
            with pytest.raises(BackendUnreachable):
                call()
        pod.start()
        row = server.jobs()[ordered.name]
        assert row.status == "running"  # as it was left; nobody works on it
        assert not work.poll(server, row, work.poll(server, row, 0, row.step).log_offset, row.step).grew
        work.clear(server, ordered.name)
        assert pod.left() == {"jobs": [], "datasets": [], "outputs": []}


# ---- the file --------------------------------------------------------------------------------------------------------


def test_a_download_that_breaks_off_goes_on(pod: FakePod, server: ToolkitServer, order: Orders, tmp_path: Path) -> None:
    ordered = order()
    remote_id = work.submit(server, ordered)
    assert ended(server, ordered.name) == "completed"
    made = pod.folder / "state" / "output" / ordered.name / f"{ordered.name}.safetensors"

    pod.fault("truncate", "GET", "safetensors", times=4)
    path = work.collect(server, ordered.name, remote_id, tmp_path / "a", ordered.spec)
    assert path.read_bytes() == made.read_bytes()
    asked = pod.journal("GET", "^/api/files/", f"{ordered.name}.safetensors")
    assert [line["status"] for line in asked] == [200, 206, 206, 206, 206]

    # Killed half-way, in another process: what it left is gone on with. What it left of another file is not.
    for beginning in (made.read_bytes()[:5000], b"x" * 5000, b"x" * (len(made.read_bytes()) + 10)):
        part = tmp_path / "b" / f"{ordered.name}.safetensors.part"
        part.parent.mkdir(exist_ok=True)
        part.write_bytes(beginning)
        path = work.collect(server, ordered.name, remote_id, part.parent, ordered.spec)
        assert path.read_bytes() == made.read_bytes()
        assert not part.exists()

    whole = made.read_bytes()
    made.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BackendFailed, match="does not match its hash"):
        work.collect(server, ordered.name, remote_id, tmp_path / "c", ordered.spec)
    made.write_bytes(whole[:100])
    with pytest.raises(BackendFailed, match="does not match its hash"):
        work.collect(server, ordered.name, remote_id, tmp_path / "c", ordered.spec)
    made.unlink()
    with pytest.raises(BackendFailed, match="has no sd15 LoRA file"):
        work.collect(server, ordered.name, remote_id, tmp_path / "c", ordered.spec)
    assert not list((tmp_path / "c").glob("*.safetensors"))
    work.clear(server, ordered.name)


# ---- everything at once ----------------------------------------------------------------------------------------------


@pytest.mark.drawn
@pytest.mark.timeout(600)
def test_many_trainings_over_a_faulty_pod(tmp_path: Path, order: Orders) -> None:
    """Faults from a seed at every request, and jobs that fail, stall or are left at `running`: each ends, once."""
    options = {"seconds_per_step": 0.01, "tick": 0.02, "loading": 0.02, "slots": 4, "faults": 11, "hang": 30}
    with fake_pod(tmp_path / "pod", **options) as pod, open_toolkit_client(timeout_s=3) as http:
        server = ToolkitServer(pod.url, pod.token, http)
        orders = [order() for _ in range(24)]
        with ThreadPoolExecutor(8) as pool:
            ends = list(pool.map(lambda one: _train(server, one, tmp_path), orders))
        left = pod.left()
        faults = [line["fault"] for line in pod.journal() if line["fault"]]
    assert set(ends) <= {"completed", "failed", "stalled"}
    assert ends.count("completed") >= 15
    assert left == {"jobs": [], "datasets": [], "outputs": []}
    assert len(set(faults)) >= 4, faults
    assert all(was_done_once(pod, ordered) for ordered in orders)


def _train(server: ToolkitServer, order: RemoteTraining, folder: Path) -> str:
    """A job's whole life, with every step tried until it is done; how it ended."""
    remote_id = _patiently(lambda: work.submit(server, order))
    moved, status, seen = time.monotonic(), "queued", None
    while status in ("queued", "running"):
        before = seen.step if seen is not None else 0
        seen = _patiently(partial(_look, server, order.name, before))
        status = seen.status
        if status == "queued" or seen.step > before:
            moved = time.monotonic()
        elif status == "running" and time.monotonic() - moved > STALL_S:
            status = "stalled"
        time.sleep(0.1)
    if status == "completed":
        path = _patiently(lambda: work.collect(server, order.name, remote_id, folder / "files", order.spec))
        convert_lora(path, folder / f"{order.name}.safetensors", order.spec, order.examples, dataset_sha256="d" * 64)
    _patiently(lambda: work.clear(server, order.name))
    return status


def _look(server: ToolkitServer, name: str, step: int) -> work.PollResult:
    return work.poll(server, server.jobs()[name], 0, step)


def _patiently(call: Callable[[], T]) -> T:
    deadline = time.monotonic() + 120
    while True:
        try:
            return call()
        except (BackendUnreachable, httpx2.HTTPError, ValueError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
