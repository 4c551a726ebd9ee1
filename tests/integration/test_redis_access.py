"""Users of Redis with the least rights, as docs/brokers.md gives them, and a Redis that may evict messages."""

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

import celeryconfig
from tasks.redis_rights import check_redis_rights
from tests.integration.doctor import diagnosed
from tests.servers.launcher import run
from tests.servers.redis import RedisServer, redis_server
from tests.site import ROOT, Site

PAGE = (ROOT / "docs" / "brokers.md").read_text()


def rights_of(user: str) -> list[str]:
    """The rule of a user on the page, without its name."""
    found = re.search(rf"^user {user} on .*?(?=\n```)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[0].replace("\\\n", " ").replace("PASSWORD", "secret").split()[2:]


def set_user(admin: "redis.Redis", user: str, rights: Iterable[str]) -> None:
    admin.execute_command("ACL", "SETUSER", user, "reset", *rights)


def address(server: RedisServer, user: str) -> str:
    return f"redis://{user}:secret@127.0.0.1:{server.port}/0"


@pytest.mark.drawn
def test_a_user_with_the_rights_of_the_page_is_refused_nothing(base_model: Path, tmp_path: Path) -> None:
    """A training from request to result, its cancellation, callbacks, remote control, and messages of dead workers."""
    with redis_server(tmp_path / "redis") as server, redis.Redis(port=server.port) as admin:
        set_user(admin, "imprint", rights_of("imprint"))
        set_user(admin, "shop", rights_of("shop"))
        admin.execute_command("ACL", "SETUSER", "default", "resetkeys", "~admin")
        running = Site(tmp_path, base_model, address(server, "imprint"), IMPRINT_VISIBILITY_TIMEOUT_S="10")
        operator, shop = running.application, address(server, "shop")
        running.application = Celery("shop", broker=shop, backend=shop)
        try:
            running.services.database.migrate()
            running.start_together("io", "train", "beat")
            running.grant("owner")
            on_end = {"task": "shop.notice", "queue": "celery"}
            job_id = running.send(on_end=on_end)["job_id"]
            assert running.wait(job_id)["status"] == "ready"
            other = running.send(max_steps=300)["job_id"]
            running.wait(other, lambda view: view["step"] > 0)
            running.kill("train")  # its message is unacknowledged, and comes back
            running.start("train")
            running.application.send_task("imprint.cancel", (other,), queue="io").get(timeout=60)
            assert operator.control.ping(timeout=5)
            doctor = diagnosed(running)
            assert re.search(r"workers: .*io@test", doctor), doctor
            log: Any = admin.execute_command("ACL", "LOG")
            assert log == []
        finally:
            running.end()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis"), appendonly=False) as started:
        yield started


# Groups of commands are checked by the ones that matter, and only `+info` may be missing.
GROUPS = {"+@connection": "ping", "+@transaction": "multi", "+@pubsub": "publish"}
RIGHTS = [right for right in rights_of("imprint")[2:] if right[0] in "~&+" and right != "+info"]


@pytest.mark.parametrize("missing", [*RIGHTS, ""])
def test_each_right_of_the_page_is_looked_for_and_nothing_is_executed(server: RedisServer, missing: str) -> None:
    user = "lacking" if missing else "whole"
    with redis.Redis(port=server.port) as admin:
        set_user(admin, user, (right for right in rights_of("imprint") if right not in (missing, "+info")))
        url = address(server, user)
        app = Celery("imprint", broker=url, backend=url)
        app.conf.task_queues = celeryconfig.task_queues
        try:
            check_redis_rights(app)
            told = ""
        except ValueError as error:
            told = str(error)
        assert admin.keys() == []
        log: Any = admin.execute_command("ACL", "LOG")
        admin.execute_command("ACL", "LOG", "RESET")
    if not missing:
        assert (told, log) == ("", [])
        return
    assert re.match(r"IMPRINT_(BROKER|RESULT)_URL: .* docs/brokers.md lists$", told), told
    named = GROUPS.get(missing, missing[1:].replace("|", " ")).strip("*.")
    assert named in told, told


@pytest.mark.drawn
def test_every_process_ends_at_its_start_with_a_sentence(server: RedisServer, tmp_path: Path) -> None:
    with redis.Redis(port=server.port) as admin:
        set_user(admin, "one", (right for right in rights_of("imprint") if right not in ("~unacked*", "+brpop")))
    made = Site(tmp_path, tmp_path, address(server, "one"))
    celery = ["celery", "-A", "tasks.app"]
    commands = {
        "stack": ["cli.stack"],
        "web": ["web"],
        "worker": [*celery, "worker", "-Q", "io", "-P", "threads"],
        "beat": [*celery, "beat", "-s", str(tmp_path / "schedule")],
        "doctor": [*celery, "imprint", "doctor"],
    }

    def ended(name: str) -> tuple[str, int, str]:
        (folder := tmp_path / name).mkdir()
        done = run(commands[name], cwd=ROOT, env=made.surroundings(), folder=folder, timeout=120)
        return name, done.returncode, " ".join((done.stdout + done.stderr).split())

    with ThreadPoolExecutor() as pool:
        for name, code, output in pool.map(ended, commands):
            assert "lacks rights (commands: brpop; keys: unacked, unacked_index, unacked_mutex)" in output, name
            assert "Traceback" not in output
            assert code == 1, name


@pytest.mark.drawn
def test_doctor_reports_a_redis_that_evicts_messages(base_model: Path, tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as server, redis.Redis(port=server.port) as client:
        running = Site(tmp_path, base_model, server.url)
        try:
            running.services.database.migrate()
            client.config_set("maxmemory-policy", "allkeys-lru")
            running.start("io")
            told = diagnosed(running)
            assert "allkeys-lru" in told
            assert "noeviction" in told
            assert "allkeys-lru" in running.log("io").read_text()
            client.config_set("maxmemory-policy", "volatile-lru")
            assert "volatile-lru" not in diagnosed(running)
        finally:
            running.end()
