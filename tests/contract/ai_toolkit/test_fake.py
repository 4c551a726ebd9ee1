"""The fake server itself: what a client of ours never does, and how it is started."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.contract.ai_toolkit.conftest import Orders
from tests.contract.ai_toolkit.watching import ended
from tests.servers.fake_pod import FakePod
from tests.servers.process import ServerProcess
from tests.site import until
from training.backends.ai_toolkit import config, work
from training.backends.ai_toolkit.server import ToolkitServer

ROOT = Path(__file__).resolve().parents[3]


def test_a_name_that_was_trained_before_is_not_trained_again(pod: FakePod, http: httpx2.Client, order: Orders) -> None:
    """The trap that names of our own, for each attempt, keep us out of."""
    server, ordered = ToolkitServer(pod.url, pod.token, http), order()
    work.submit(server, ordered)
    assert ended(server, ordered.name) == "completed"
    folder = pod.folder / "state" / "output" / ordered.name
    row = server.jobs()[ordered.name]
    job_config = config.job_config(
        ordered.spec, ordered.name, server.folders(), pictures=5, base_model=ordered.base_model
    )
    kept = {f"{ordered.name}.safetensors": (folder / f"{ordered.name}.safetensors").read_bytes()}
    server.delete_job(row.id)
    assert not folder.exists()
    folder.mkdir()
    for name, data in kept.items():
        (folder / name).write_bytes(data)
    made = (folder / f"{ordered.name}.safetensors").stat().st_mtime_ns
    again = server.create_job(ordered.name, job_config)
    assert again is not None
    server.start(again.id)
    server.start_queue()
    assert ended(server, ordered.name) == "completed"
    assert (folder / f"{ordered.name}.safetensors").stat().st_mtime_ns == made
    assert server.loss(again.id) == []
    work.clear(server, ordered.name)


def test_the_doors_that_the_real_one_left_open(pod: FakePod) -> None:
    """Without a password captions can be written and files be read; nothing outside the fake's folder ever is."""
    with httpx2.Client(base_url=pod.url, timeout=60, trust_env=False) as stranger:
        for path, status in (
            ("/api/files/%2Fetc%2Fpasswd", 403),
            ("/api/files/tmp/x", 403),
            ("/api/img/%2Fetc%2Fpasswd", 403),
            ("/api/jobs", 401),
            ("/_fake/faults", 401),
        ):
            assert stranger.get(path).status_code == status, path
        answer = stranger.post("/api/img/caption", json={"imgPath": "/etc/passwd", "caption": "x"})
        assert (answer.status_code, answer.json()) == (400, {"error": "Invalid image path"})
    files = [("files", ("x.png", b"x"))]
    with httpx2.Client(
        base_url=pod.url, headers={"Authorization": f"Bearer {pod.token}"}, timeout=60, trust_env=False
    ) as client:
        outside = client.post("/api/datasets/upload", data={"datasetName": "../../evil"}, files=files)
        assert outside.status_code == 500
        client.post("/api/datasets/delete", json={"name": "../../.."})
        assert (pod.folder / "state" / "aitk_db.db").exists()
        assert client.post("/api/jobs", json={"name": "x"}).json() == {"error": "Failed to save training data"}
        assert client.get("/api/jobs/nobody/start").json() == {"error": "Job not found"}
        assert client.get("/api/jobs/nobody/mark_stopped").status_code == 500
        assert client.get("/api/queue/7/stop").json() == {"error": "Queue not found"}
        assert "could not be found" in client.get("/api/nothing").text


@pytest.mark.parametrize("how", ["celery", "module"])
def test_the_command(how: str, tmp_path: Path) -> None:
    """It says where it is, takes more arguments from the environment, and leaves nothing behind."""
    argv = {
        "celery": [str(Path(sys.executable).parent / "celery"), "-A", "tasks.app", "imprint", "fake-pod"],
        "module": [sys.executable, "-m", "fakes.ai_toolkit"],
    }[how]
    env = {**os.environ, "TMPDIR": str(tmp_path), "AI_TOOLKIT_AUTH": "from-env", "IMPRINT_HOME": str(tmp_path / "home")}
    arguments = ["--port", "0"]
    if how == "module":
        env["FAKE_POD_ARGUMENTS"], arguments = "--port 0 --gpu 'A Card'", []
    else:
        arguments += ["--gpu", "A Card"]
    log = tmp_path / "log"
    process = ServerProcess([*argv, *arguments], log=log, cwd=ROOT, env=env)
    try:
        process.wait_until(lambda: b"fake ai-toolkit server on" in log.read_bytes(), 120)
        url = next(word for word in log.read_text().split() if word.startswith("http"))
        with httpx2.Client(trust_env=False, timeout=60) as http:
            assert [gpu.name for gpu in ToolkitServer(url, "from-env", http).gpus()] == ["A Card"]
        process.signal(signal.SIGTERM)
        until(lambda: not process.alive, 60, "it ends")
    finally:
        process.end()
    assert not list(tmp_path.glob("fake-pod-*"))


def test_a_wrong_command_says_so() -> None:
    argv = [sys.executable, "-m", "fakes.ai_toolkit", "--trainer", "real"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 2
    assert "--base-model" in done.stderr
