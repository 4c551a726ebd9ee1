"""The minimal cost of Celery: empty tasks in a chain of five, or in the canvas of a job."""

import os

from celery import Celery, chain, chord, signature
from celery.canvas import Signature

from tasks.pipeline import forget_result

app = Celery("empty", broker=os.environ.get("EMPTY_BROKER_URL"), backend=os.environ.get("EMPTY_BROKER_URL"))
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    task_ignore_result=True,
    task_default_queue="empty",
    worker_consumer="tasks.rabbitmq.consumer:SteadyConsumer",
)


@app.task(name="empty.step")
def step(number: int) -> None:
    """Nothing."""


@app.task(name="empty.picture", ignore_result=False)
def picture(number: int) -> None:
    """Nothing, as a task in the header of a chord."""


@app.task(name="empty.last")
def last(number: int, counter: str) -> None:
    """Nothing but count finished chains."""
    with app.connection_or_acquire() as connection:
        connection.default_channel.client.incr(counter)


def _steps(count: int, number: int) -> list[Signature]:
    return [signature("empty.step", (number,), immutable=True, app=app) for _ in range(count)]


def send_chain(number: int, counter: str) -> None:
    """Five tasks in sequence."""
    chain(*_steps(4, number), signature("empty.last", (number, counter), immutable=True, app=app)).apply_async()


def send_canvas(number: int, counter: str) -> None:
    """The canvas of a job with five pictures: a chord of five, then dataset, train, upload, settle and clean-up."""
    header = [signature("empty.picture", (number,), immutable=True, app=app) for _ in range(5)]
    last = signature("empty.last", (number, counter), immutable=True, app=app)
    forget_result(chain(chord(header, _steps(1, number)[0]), *_steps(3, number), last).apply_async())
