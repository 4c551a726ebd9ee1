"""Submissions that are killed, fail, or find half of it done: one job comes of each, with its own pictures."""

import time

import httpx2
import pytest

from core.errors import BackendFailed, BackendUnreachable
from tests.contract.ai_toolkit.conftest import Orders
from tests.contract.ai_toolkit.watching import ended, was_done_once
from tests.samples import FULL, SEED
from tests.servers.fake_pod import FakePod
from training.backends.ai_toolkit import work
from training.backends.ai_toolkit.server import ToolkitServer


class Died(BaseException):
    """The client's process ends here."""


class Mortal(httpx2.BaseTransport):
    """Passes requests on, and dies at number `at`: before it is sent, or once the server has done it."""

    def __init__(self, at: int, *, after: bool) -> None:
        self.at, self.after, self.count = at, after, 0
        self.inner = httpx2.HTTPTransport(verify=False)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.count += 1
        if self.count == self.at and not self.after:
            raise Died
        response = self.inner.handle_request(request)
        if self.count == self.at:
            response.read()
            raise Died
        return response


@pytest.fixture
def server(pod: FakePod, http: httpx2.Client) -> ToolkitServer:
    return ToolkitServer(pod.url, pod.token, http)


def test_a_submission_that_dies_anywhere_is_gone_on_with(pod: FakePod, server: ToolkitServer, order: Orders) -> None:
    """A kill before or after each request; the next process finds what is there, and nothing is doubled.

    `make test` takes every second request, by the seed: before it or after it.
    """
    orders = []
    for after in (False, True):
        for at in range(1, 100) if FULL else range(1 + (SEED + after) % 2, 100, 2):
            ordered = order(max_steps=1)
            orders.append(ordered)
            transport = Mortal(at, after=after)
            with httpx2.Client(transport=transport, timeout=30) as mortal:
                try:
                    work.submit(ToolkitServer(pod.url, pod.token, mortal), ordered)
                except Died:
                    pass
                else:
                    assert at > 8  # it died at each request before that
                    break
            work.submit(server, ordered)
            assert was_done_once(pod, ordered), (at, after)
            assert len(server.pictures(ordered.name)) == 5
    for ordered in orders:
        assert ended(server, ordered.name) == "completed"
        work.clear(server, ordered.name)
    assert pod.left() == {"jobs": [], "datasets": [], "outputs": []}


KINDS = ("error", "reset", "lost", "hang")
REQUESTS = ("/api/datasets/create", "/api/datasets/upload", "/api/jobs", "/start", "/api/queue/0/start")


@pytest.mark.parametrize("path", REQUESTS)
def test_a_request_that_fails_while_submitting(
    path: str, pod: FakePod, server: ToolkitServer, order: Orders, hasty: httpx2.Client
) -> None:
    method = "POST" if "datasets" in path or path == "/api/jobs" else "GET"
    # `make test` takes two kinds for each path, all four of them over the paths.
    for kind in KINDS if FULL else [KINDS[(SEED + REQUESTS.index(path) + n) % 4] for n in range(2)]:
        ordered = order(max_steps=1)
        pod.fault(kind, method, path)
        begun = time.monotonic()
        try:
            work.submit(ToolkitServer(pod.url, pod.token, hasty), ordered)
        except BackendUnreachable:
            work.submit(server, ordered)  # as the next attempt of the step does
        assert time.monotonic() - begun < 25  # a hang of 30 s is not waited for
        assert was_done_once(pod, ordered), kind
        assert ended(server, ordered.name) == "completed"
        work.clear(server, ordered.name)


def test_a_half_written_picture_is_sent_again_and_only_that(pod: FakePod, server: ToolkitServer, order: Orders) -> None:
    ordered = order()
    pod.fault("error", "POST", "/api/jobs", times=1)
    with pytest.raises(BackendUnreachable):
        work.submit(server, ordered)
    folder = pod.folder / "state" / "datasets" / ordered.name
    (folder / "0002.png").write_bytes((folder / "0002.png").read_bytes()[:100])
    (folder / "0004.txt").unlink()
    sent = len(pod.journal("POST", "upload$", ordered.name))
    work.submit(server, ordered)
    assert len(pod.journal("POST", "upload$", ordered.name)) == sent + 1
    assert (folder / "0002.png").read_bytes() == ordered.examples[1].path.read_bytes()
    assert ended(server, ordered.name) == "completed"
    work.clear(server, ordered.name)


def test_a_strange_picture_in_the_dataset_is_no_training(pod: FakePod, server: ToolkitServer, order: Orders) -> None:
    ordered = order()
    server.datasets()
    server.create_dataset(ordered.name)
    server.upload(ordered.name, [("9999.png", b"of somebody else")])
    with pytest.raises(BackendFailed, match="1 pictures that do not belong to this job"):
        work.submit(server, ordered)
    work.clear(server, ordered.name)
    assert ordered.name not in pod.left()["datasets"]


def test_large_datasets_go_in_several_requests(
    pod: FakePod, server: ToolkitServer, order: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.backends.ai_toolkit import delivery

    ordered = order()
    largest = max(example.path.stat().st_size for example in ordered.examples)
    monkeypatch.setattr(delivery, "MAX_REQUEST_BYTES", 2 * largest + 4000)
    work.submit(server, ordered)
    assert len(pod.journal("POST", "upload$", ordered.name)) == 3
    assert ended(server, ordered.name) == "completed"
    work.clear(server, ordered.name)
    assert delivery.MAX_REQUEST_BYTES < 90_000_000
