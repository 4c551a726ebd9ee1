"""A broker that takes nothing more: Redis at its memory limit, as `noeviction` has it, and one that loses all messages
(`FLUSHALL`, an eviction policy that does not suit a broker).
"""

import signal
from pathlib import Path

import pytest
import redis
from celery import Celery

import tasks.rabbitmq.consumer  # noqa: F401 - what a worker loads
from jobs import service
from jobs.lifecycle import sweeps
from jobs.owners import accounts
from tests.servers.redis import redis_server
from tests.site import RECIPE, Site, site, until

pytestmark = pytest.mark.drawn


def accept(running: Site, seed: int) -> str:
    """A request that comes by another door than the broker."""
    images = running.pictures("owner")
    request = {"owner_id": "owner", "subject_id": "mascot", **RECIPE, "images": images, "seed": seed}
    job_id: str = service.submit(running.services, request).job_id
    return job_id


def test_jobs_go_on_by_themselves_after_redis_was_full_and_after_it_lost_all_messages(
    base_model: Path, tmp_path: Path
) -> None:
    with site(tmp_path, base_model, IMPRINT_SWEEP_S="2") as running:
        running.grant("owner")
        assert running.redis is not None
        with redis.Redis.from_url(running.redis.url) as client:
            under_way = running.send(max_steps=400)["job_id"]
            running.wait(under_way, lambda view: view["step"] > 0)
            lost = running.send(seed=3)["job_id"]
            assert client.hlen("unacked"), "the message of the training, to be lost with those of the other job"
            client.flushall()
            # A message that the worker takes while Redis cannot note that it did.
            running.processes["io"].signal(signal.SIGSTOP)
            until(lambda: client.llen("sweep") > 0, 60, "a message of beat")
            client.config_set("maxmemory", 1)
            running.processes["io"].signal(signal.SIGCONT)
            until(lambda: b"OutOfMemoryError" in running.log("io").read_bytes(), 60, "taken")
            waiting = accept(running, seed=2)
            # The training meets it: neither what follows its step nor its failure can be sent.
            until(lambda: b"ended outside its body" in running.log("train").read_bytes(), 60, "refused twice")
            client.config_set("maxmemory", 0)
            # What a full Redis left is gone too.
            client.flushall()
        for job_id in (under_way, lost, waiting):
            view = running.wait(job_id, timeout_s=180)
            assert view["status"] == "ready", view["failure"]
        # Redis also forgot which queues there are; workers still answer.
        until(lambda: names_of_workers(running) == {"io@test", "train@test"}, 60, "both answer")
        assert all(process.alive for process in running.processes.values())
        kinds = [entry.kind for entry in accounts.statement(running.services, "owner")]
        assert sorted(kinds) == ["grant", *["hold"] * 3, *["settle"] * 3]
        assert sweeps.run_audit(running.services) == []
        until(lambda: not running.left_behind(under_way)[1:], 60, "cleaned")


def names_of_workers(running: Site) -> set[str]:
    """Of those that answer a ping within five seconds."""
    return {next(iter(reply)) for reply in running.application.control.ping(timeout=5)}


@pytest.mark.parametrize("end", ["ack", "reject"])
def test_a_message_that_a_full_redis_cannot_forget_takes_no_slot_of_the_worker(tmp_path: Path, end: str) -> None:
    with (
        redis_server(tmp_path, appendonly=False) as server,
        redis.Redis(port=server.port) as client,
        Celery("worker", broker=server.url).connection() as connection,
    ):
        queue = connection.SimpleQueue("io")
        queue.consumer.qos(prefetch_count=1)
        queue.put("one")
        message = queue.get(timeout=60)
        assert not message.channel.qos.can_consume()
        client.config_set("maxmemory", 1)
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            getattr(message, end)()
        assert message.channel.qos.can_consume()
        client.config_set("maxmemory", 0)
