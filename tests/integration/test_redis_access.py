"""A user of Redis with the least rights, as docs/brokers.md gives it, and a Redis that may evict messages."""

import re
from pathlib import Path
from typing import Any

import redis
from celery import Celery

from tests.servers.redis import redis_server
from tests.site import ROOT, Site

PAGE = (ROOT / "docs" / "brokers.md").read_text()


def test_a_user_with_the_rights_of_the_page_is_refused_nothing(base_model: Path, tmp_path: Path) -> None:
    """A training from request to result, its cancellation, callbacks, remote control, and messages of dead workers."""
    found = re.search(r"^user imprint on .*?(?=\n```)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    rules = found[0].replace("\\\n", " ").split()[2:]
    with redis_server(tmp_path / "redis") as server, redis.Redis(port=server.port) as admin:
        admin.execute_command("ACL", "SETUSER", "imprint", *(rule.replace("PASSWORD", "secret") for rule in rules))
        admin.execute_command("ACL", "SETUSER", "default", "resetkeys", "~admin")
        address = f"redis://imprint:secret@127.0.0.1:{server.port}/0"
        running = Site(tmp_path, base_model, address, IMPRINT_VISIBILITY_TIMEOUT_S="10")
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
            ping(running.application)
            doctor = running.imprint("doctor", check=False).stdout
            assert re.search(r"workers: .*io@test", doctor), doctor
            log: Any = admin.execute_command("ACL", "LOG")
            assert log == []
        finally:
            running.end()


def ping(application: Celery) -> None:
    assert application.control.ping(timeout=5)


def test_doctor_reports_a_redis_that_evicts_messages(base_model: Path, tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as server, redis.Redis(port=server.port) as client:
        running = Site(tmp_path, base_model, server.url)
        try:
            running.services.database.migrate()
            client.config_set("maxmemory-policy", "allkeys-lru")
            running.start("io")
            told = running.imprint("doctor", check=False).stdout
            assert "allkeys-lru" in told
            assert "noeviction" in told
            assert "allkeys-lru" in running.log("io").read_text()
            client.config_set("maxmemory-policy", "volatile-lru")
            assert "volatile-lru" not in running.imprint("doctor", check=False).stdout
        finally:
            running.end()
