"""The last stages of trained jobs go before a backlog of other tasks, on Redis and on RabbitMQ."""

from contextlib import ExitStack
from pathlib import Path

import pytest
from kombu import Connection, Exchange, Queue

import celeryconfig
from core.brokers import queues
from tests.samples import sample
from tests.servers.rabbitmq import rabbitmq_server
from tests.servers.redis import redis_server

TAKEN = ("io", "cpu", "sweep", queues.FINISH)  # what the worker takes from, in an order that says nothing
BACKLOG = 40


def test_the_last_stages_have_their_queue() -> None:
    routes = celeryconfig.task_routes
    assert {routes[f"imprint.{stage}"]["queue"] for stage in ("upload", "settle")} == {queues.FINISH}
    assert queues.FINISH in {queue.name for queue in celeryconfig.task_queues}


@pytest.mark.parametrize("broker", sample(["redis", "rabbitmq"], 1, "brokers with an order"))
def test_a_backlog_does_not_hold_up_the_last_stages(broker: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        if broker == "redis":
            url, options = stack.enter_context(redis_server(tmp_path)).url, celeryconfig._redis_options
        else:
            url, options = stack.enter_context(rabbitmq_server(tmp_path)).url, {}
        connection = stack.enter_context(Connection(url, transport_options=options))
        channel = connection.channel()
        declared = [Queue(name, Exchange(name), routing_key=name, channel=channel) for name in TAKEN]
        producer = connection.Producer(channel)
        for queue in declared:
            for _ in range(5 if queue.name == queues.FINISH else BACKLOG):
                producer.publish({}, exchange=queue.exchange, routing_key=queue.routing_key, declare=[queue])
        order: list[str] = []
        consumer = connection.Consumer(declared, accept=["json"])
        # As a worker with one process has it: the next message when this one is done.
        consumer.qos(prefetch_count=1)
        consumer.register_callback(
            lambda _, message: (order.append(message.delivery_info["routing_key"]), message.ack())
        )
        with consumer:
            while order.count(queues.FINISH) < 5:
                connection.drain_events(timeout=60)
    waited = len(order) - 5
    if broker == "redis":
        assert order[:5] == [queues.FINISH] * 5
    else:
        assert waited <= 5 * 2 * len(TAKEN), f"{waited} of {3 * BACKLOG} other tasks went first"
