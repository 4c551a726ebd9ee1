"""What our client and a server agree on. Runs against the fake, in both shapes of its API, or against a real server."""

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.errors import BackendFailed
from tests.contract.ai_toolkit.conftest import PATIENCE_S, Orders
from tests.site import until
from training.backends.ai_toolkit import config, work
from training.backends.ai_toolkit.answers import QUEUED, STOPPED
from training.backends.ai_toolkit.convert import convert_lora
from training.backends.ai_toolkit.server import ToolkitServer
from training.backends.ai_toolkit.work import PollResult, RemoteTraining
from training.lora import file as lora_file

pytestmark = pytest.mark.timeout(4 * PATIENCE_S)


def follow(server: ToolkitServer, name: str) -> list[PollResult]:
    """Every sighting of a job until it has ended, as the poll makes them."""
    seen: list[PollResult] = []
    deadline = time.monotonic() + PATIENCE_S
    while not seen or seen[-1].status in ("queued", "running"):
        assert time.monotonic() < deadline, seen[-1]
        offset, step = (seen[-1].log_offset, seen[-1].step) if seen else (0, 0)
        seen.append(work.poll(server, server.jobs()[name], offset, step))
        time.sleep(0.1)
    return seen


def test_a_training_from_end_to_end(server: ToolkitServer, order: Orders, tmp_path: Path) -> None:
    """Submitted twice and there once; seen running; its file is fetched, converted, cleared away."""
    assert server.ready()
    assert server.gpus()
    ordered = order()
    remote_id = work.submit(server, ordered)
    assert work.submit(server, ordered) == remote_id
    assert [job.id for job in server.jobs().values() if job.name == ordered.name] == [remote_id]
    assert server.queue_length() >= 1

    seen = follow(server, ordered.name)
    last = seen[-1]
    assert (last.status, last.step, last.total) == ("completed", 12, 12), last.info
    assert work.submit(server, ordered) == remote_id  # a message that comes late starts nothing again
    assert server.jobs()[ordered.name].status == "completed"
    assert [one.step for one in seen] == sorted(one.step for one in seen)
    assert last.loss is not None
    assert 0 < last.loss < 10
    assert any(one.grew or one.step for one in seen[:-1])
    points = server.loss(remote_id)
    assert [point.step for point in points] == list(range(12))
    assert server.loss(remote_id, since=10) == points[-1:]
    # After step 11 was seen, the loss of the step with number 11, the last, is new.
    assert work.poll(server, server.jobs()[ordered.name], step=11).loss == points[-1].value
    assert {sample.step for sample in last.samples} >= {3, 6, 9}
    (tmp_path / "sample").write_bytes(server.sample_bytes(last.samples[-1].path, 5_000_000))
    with Image.open(tmp_path / "sample") as picture:
        assert picture.format in ("JPEG", "PNG", "WEBP")
    with pytest.raises(BackendFailed, match="more than 100 bytes"):
        server.sample_bytes(last.samples[-1].path, 100)

    path = work.collect(server, ordered.name, remote_id, tmp_path, ordered.spec)
    out = tmp_path / "ours.safetensors"
    report = convert_lora(path, out, ordered.spec, ordered.examples, dataset_sha256="d" * 64)
    assert lora_file.check_lora_file(out, family="sd15", rank=4) == report
    assert report.alpha == 32.0
    work.clear(server, ordered.name)
    work.clear(server, ordered.name)
    assert ordered.name not in server.jobs()
    assert ordered.name not in server.datasets()
    with pytest.raises(BackendFailed, match="not completed"):
        work.collect(server, ordered.name, remote_id, tmp_path / "again", ordered.spec)


def test_a_running_job_is_cancelled(server: ToolkitServer, order: Orders) -> None:
    ordered = order(max_steps=5000)
    remote_id = work.submit(server, ordered)
    until(lambda: server.jobs()[ordered.name].step > 0, PATIENCE_S, "it runs")
    assert server.start_queue() is None  # again: it runs already
    work.cancel(server, ordered.name)
    work.cancel(server, ordered.name)
    assert work.poll(server, server.jobs()[ordered.name]).status == "stopped"
    assert work.submit(server, ordered) == remote_id  # a message that comes late starts nothing again
    time.sleep(1)
    assert server.jobs()[ordered.name].status == STOPPED
    work.clear(server, ordered.name)
    assert ordered.name not in server.jobs()


def test_the_traps_that_we_step_around(server: ToolkitServer, order: Orders) -> None:
    """If one of these fails on a real server, ai-toolkit has changed, and so may we."""
    assert server.job("00000000-0000-0000-0000-000000000000") is None
    assert server.pictures("imprint_nobody") == []
    server.delete_dataset("imprint_nobody")
    server.delete_job("00000000-0000-0000-0000-000000000000")
    server.datasets()  # a fresh server answers 500 to the next call until it was asked this
    assert server.create_dataset("imprint_trap") == server.create_dataset("imprint_trap") == "imprint_trap"
    server.upload("imprint_trap", [("0001.png", b"first"), ("0001.txt", "ünïcödé, ${x}".encode())])
    server.upload("imprint_trap", [("0001.png", b"second one")])  # silently
    [path] = server.pictures("imprint_trap")
    assert server.captions([path]) == {path: "ünïcödé, ${x}"}
    assert server.size_of(path) == len(b"second one")
    assert server.size_of(path + "x") is None
    server.delete_dataset("imprint_trap")
    assert server.pictures("imprint_trap") == []

    ordered = order()
    made = server.create_job(ordered.name, _config(server, ordered))
    assert made is not None
    assert (made.status, made.step, made.info, made.stop) == (STOPPED, 0, "", False)
    assert server.create_job(ordered.name, {}) is None  # the name is taken
    queues = server.queues()
    if queues is not None and not queues.get("0"):
        server.start(made.id)
        row = server.job(made.id)
        assert row is not None
        assert row.status == QUEUED
        assert not (server.queues() or {})["0"]  # it does not run for that
        server.stop(made.id)
        assert server.jobs()[ordered.name].status == QUEUED  # a queued job is not stopped by it
        work.cancel(server, ordered.name)
        assert server.jobs()[ordered.name].status == STOPPED
    work.clear(server, ordered.name)


def _config(server: ToolkitServer, ordered: RemoteTraining) -> dict[str, object]:
    return config.job_config(ordered.spec, ordered.name, server.folders(), pictures=5, base_model=ordered.base_model)


def test_names_that_are_not_ours_are_never_asked_for(server: ToolkitServer) -> None:
    """The server deletes the folder of a job's name whatever it is: "" would be all that it ever made."""
    before = server.jobs()
    for name in ("", ".", "..", "imprint_", "imprint_../x", "imprint_A", "somebody_elses"):
        for act in (work.clear, work.cancel):
            with pytest.raises(BackendFailed, match="is not a name of"):
                act(server, name)
        with pytest.raises(BackendFailed, match="is not a name of"):
            server.delete_dataset(name + "/")
    assert set(server.jobs()) >= set(before)


def test_two_trainings_are_told_apart(server: ToolkitServer, order: Orders, tmp_path: Path) -> None:
    """Each gets its own file, one after another; they differ though the recipe is the same."""
    first, second = order(), order()
    ids = [work.submit(server, one) for one in (first, second)]
    for one in (first, second):
        assert follow(server, one.name)[-1].status == "completed"
    files = [
        work.collect(server, one.name, remote_id, tmp_path, one.spec)
        for one, remote_id in zip((first, second), ids, strict=True)
    ]
    weights = [np.frombuffer(path.read_bytes()[-4000:], np.uint8) for path in files]
    assert not np.array_equal(*weights)
    for one in (first, second):
        work.clear(server, one.name)
