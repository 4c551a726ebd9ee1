"""The Celery canvas of the stages that a job still lacks. Messages contain ids only."""

from contextlib import suppress

from celery import chain, chord
from celery.canvas import Signature
from celery.result import AsyncResult, ResultBase, ResultSet
from redis.exceptions import RedisError

from jobs.services import Services
from jobs.stages import stage_runner
from storage.tables.jobs import Stage
from tasks.app import app

# The stages after preprocess, in their order.
_CHAIN = (Stage.CAPTION, Stage.DATASET, Stage.TRAIN, Stage.UPLOAD, Stage.SETTLE)


def launch(services: Services, job_id: str, message_id: str) -> None:
    """Send the stages that the job still lacks: all for a new job, the rest after a crash or a hand-over.

    `message_id` is the launch message, which the error callback names, so that each launch is counted once.
    """
    lacks = stage_runner.remaining_work(services, job_id)
    if lacks is None:
        return
    first = Stage.DATASET if lacks.stage is Stage.PREPROCESS else lacks.stage
    stages = _CHAIN if lacks.captions else _CHAIN[_CHAIN.index(first) :]
    trainer = f"train.{lacks.family}" if lacks.backend == "local" else "io"  # a remote training needs no GPU here
    # Each step and the chord's body call it. Linked to the whole chain, it would come to the chord, which does the
    # same, and warn of a default that may change: a line in the log for each job.
    on_error = app.signature("imprint.step_failed", (job_id, message_id), immutable=True)
    steps = [_step(stage, job_id, trainer, caption_here=lacks.caption_here) for stage in stages]
    for step in steps:
        step.link_error(on_error)
    if lacks.groups:
        header = [app.signature("imprint.preprocess", (job_id, *group), immutable=True) for group in lacks.groups]
        steps[0] = chord(header, steps[0])
    forget_result(chain(*steps).apply_async())


def forget_result(result: ResultBase | None) -> None:
    """Forget results that are never read, so that Redis is not asked again when they are garbage-collected.

    Celery 5.7.0 keeps a second object and a subscription for each picture of a chord as long as the process lives.
    After a reconnect to Redis, an object that lost its backend breaks the next launch.
    """
    while result is not None:
        for one in [result, *(result.results if isinstance(result, ResultSet) else ())]:
            if isinstance(one, AsyncResult) and one.backend is not None:
                _forget(one)
        result = result.parent


def _forget(result: AsyncResult) -> None:
    backend = result.backend
    twins = [twin for waiting in backend._pending_results for twin in (waiting.get(result.id) or {}).values()]
    for one in (*twins, result):
        with suppress(RedisError, RuntimeError):  # the broker is away; the canvas is sent already
            backend.remove_pending_result(one)
        one.backend = None


def _step(stage: Stage, job_id: str, trainer: str, *, caption_here: bool) -> Signature:
    step = app.signature(f"imprint.{stage}", (job_id,), immutable=True)
    needs_trainer = stage is Stage.TRAIN or (stage is Stage.CAPTION and caption_here)
    return step.set(queue=trainer) if needs_trainer else step
