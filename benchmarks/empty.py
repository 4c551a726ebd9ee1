"""The least that Celery can do: five tasks in a chain that do nothing. What the pipeline is measured against."""

import os

from celery import Celery, chain, signature

app = Celery("empty", broker=os.environ.get("EMPTY_BROKER_URL"))
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    task_ignore_result=True,
    task_default_queue="empty",
    worker_consumer="tasks.consumer:SteadyConsumer",
)


@app.task(name="empty.step")
def step(number: int) -> None:
    """Nothing."""


@app.task(name="empty.last")
def last(number: int, counter: str) -> None:
    """Nothing, and counts that a chain ended."""
    with app.connection_or_acquire() as connection:
        connection.default_channel.client.incr(counter)


def send(number: int, counter: str) -> None:
    """One chain of five."""
    steps = [signature("empty.step", (number,), immutable=True, app=app) for _ in range(4)]
    chain(*steps, signature("empty.last", (number, counter), immutable=True, app=app)).apply_async()
