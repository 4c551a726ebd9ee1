"""What a worker does when it starts and when it stops."""

import logging
import os
import signal
from importlib import import_module
from typing import Any

from celery.signals import (
    beat_init,
    celeryd_after_setup,
    celeryd_init,
    setup_logging,
    worker_init,
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
    worker_shutting_down,
)
from celery.worker.control import inspect_command

from core import essential
from core.brokers import queues
from core.errors import ImprintError
from core.private import keep_private
from core.settings import settings
from core.telemetry.logging import set_up
from core.telemetry.metrics import SWEEP_FAILURES
from jobs.deletion import encodings
from jobs.services import services
from jobs.stages import control
from jobs.stages.ahead import Ahead
from jobs.stages.stage_runner import clear_dead_work_dirs
from tasks.app import app
from tasks.queue_types import check_queue_types, eviction_policy
from tasks.redis_rights import check_redis_rights
from tasks.sweeps import PARTS
from tasks.workers import device_check, metrics
from tasks.workers.device_check import DeviceState
from tasks.workers.heartbeat import Heartbeat
from tasks.workers.spot_notice import SpotNotice
from tasks.workers.threads import SteadyThreads
from training.captioning import weights
from training.device_failure import on_device_failure

log = logging.getLogger(__name__)

_trains_on: DeviceState | None = None  # of a training worker, after the check of its device
_heartbeat: Heartbeat | None = None  # of a training worker


@celeryd_init.connect
def _keep_private(**_: Any) -> None:
    keep_private(settings().home)  # before `_prepare` creates the database


@setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    keep_private(settings().home)
    # Beat stores its schedule there, and may be the first process on a new home folder.
    settings().run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    set_up(settings().log_dir, settings().log_level, settings().log_format)


@beat_init.connect
def _check_settings(**_: Any) -> None:
    try:
        services().check()
        check_redis_rights(app)
    except (ValueError, ImprintError) as error:
        raise SystemExit(f"beat cannot start: {error}") from None  # Celery logs any other error and continues


@beat_init.connect
def _announce_no_sweeps(**_: Any) -> None:
    """Let workers alone report sweeps: an event of sending has a task's own name, not the one of `celeryconfig`."""
    app.conf.task_send_sent_event = False


@worker_init.connect
def _prepare(**_: Any) -> None:
    try:
        services().check()
        check_redis_rights(app)
        check_queue_types(app)
        services().database.migrate()
    except (ValueError, ImprintError) as error:
        raise SystemExit(f"this worker cannot start: {error}") from None  # Celery logs any other error and continues
    if policy := eviction_policy(app):
        log.error("%s", policy)
    services().database.close()  # children of a prefork pool open their own
    clear_dead_work_dirs(services())
    metrics.begin(settings())
    for parts in PARTS.values():
        for part in parts:
            SWEEP_FAILURES.add(0, part.name)


@celeryd_init.connect
def _set_concurrency(conf: Any, options: dict[str, Any], **_: Any) -> None:
    """A training worker takes as many jobs as it trains in one step, a worker that only draws one drawing, and a fetch
    worker has the threads of its setting.

    `-c` says another number.
    """
    names = options.get("queues") or ()
    if options.get("concurrency"):
        return
    if any(name.startswith(queues.TRAIN) for name in names):
        from training.device import max_slots  # imports torch: only on workers that train

        conf.worker_concurrency = settings().cohort or max_slots(settings().device)
    elif any(name.startswith(queues.DRAW) for name in names):
        conf.worker_concurrency = 1
    elif "fetch" in names and _has_threads(options.get("pool")):
        conf.worker_concurrency = settings().fetch_concurrency


@celeryd_after_setup.connect
def _take_last_stages(instance: Any, **_: Any) -> None:
    """Take the last stages of trained jobs on a worker that was started with the queues of an earlier version."""
    taken = instance.app.amqp.queues
    if "io" in taken.consume_from and queues.FINISH not in taken.consume_from:
        taken.select_add(taken[queues.FINISH])


@celeryd_after_setup.connect
def _share_slots(instance: Any, **_: Any) -> None:
    """Owners take turns on the threads of a fetch worker. Processes of a prefork pool do not know of each other."""
    if "fetch" in instance.app.amqp.queues.consume_from and _has_threads(instance.pool_cls):
        services().slots.total = instance.concurrency


def _has_threads(pool: Any) -> bool:
    """Whether the class of a worker's pool is the one of `-P threads`."""
    return pool is SteadyThreads


@worker_process_shutdown.connect
def _flush_outbox(**_: Any) -> None:
    """A child of a prefork pool ends without running atexit handlers."""
    sender = services().outbox_sender
    if sender is not None:
        sender.flush()


@worker_process_init.connect
def _close_metrics_port(**_: Any) -> None:
    metrics.leave_to_parent()


@celeryd_after_setup.connect
def _check_device(instance: Any, **_: Any) -> None:
    """Check the device before the first job of a training worker, and drop the queues of families that fail on it.

    A training worker on a CPU takes one task at a time, so a drawing would wait for a whole training: there, another
    worker draws.
    """
    global _trains_on, _heartbeat
    taken = instance.app.amqp.queues
    families = [name.removeprefix(queues.TRAIN) for name in taken.consume_from if name.startswith(queues.TRAIN)]
    drawn = [name for name in taken.consume_from if name.startswith(queues.DRAW)]
    if families or drawn:
        on_device_failure(lambda reason: _end(f"its device failed: {reason}"))
    if families:
        metrics.expect(families)
        _trains_on = device_check.check(settings(), families)
        for family in _trains_on.refused:
            taken.deselect(queues.TRAIN + family)
        import_module("training.backends.local")  # imports torch now, so that the first job does not wait for it
        trained = [queues.TRAIN + family for family in families if family not in _trains_on.refused]
        control.device.name = _trains_on.name
        has_captioner = _has_captioner()
        _heartbeat = Heartbeat(
            instance.hostname, trained, instance.concurrency, _trains_on.name, captions=has_captioner
        )
        dropped = drawn if device_check.is_cpu(settings()) else [queues.DRAW + name for name in _trains_on.refused]
        for name in set(drawn) & set(dropped):
            taken.deselect(name)
    # A worker that only draws, on the CPU, imports torch for its first drawing: most of them never get one.
    if set(drawn) & set(taken.consume_from) and (families or settings().device != "cpu"):
        import_module("training.backends.drawing")


def _has_captioner() -> bool:
    """Whether this worker can write captions. Without, requests that ask for them are refused."""
    location = settings().captioner
    if location is None:
        return False
    try:
        weights.locate(location)
    except ImprintError as error:
        log.error("this worker writes no captions: %s", error)
        return False
    return True


def _end(reason: str) -> None:
    """End this worker: its process cannot use a failed device again, or its machine vanishes. Others take its jobs."""
    if not control.leaving.is_set():
        control.leaving.set()
        log.error("this worker ends because %s", reason)
        os.kill(os.getpid(), signal.SIGTERM)


@worker_ready.connect
def _report_slots(**_: Any) -> None:
    if _heartbeat is not None:
        _heartbeat.start()


@worker_ready.connect
def _keep_encodings_clean(**_: Any) -> None:
    if _trains_on is not None:
        essential.start("encodings", lambda: encodings.keep_clean(services()))


@worker_ready.connect
def _watch_for_the_end(**_: Any) -> None:
    if (cloud := settings().spot_notice) is not None:
        SpotNotice(cloud).watch(_end, services().lease_keeper.hand_over_all)


@worker_ready.connect
def _prepare_ahead(**_: Any) -> None:
    """Prepare pictures of waiting jobs on an idle fetch worker. Processes of a prefork pool cannot tell if it is."""
    if services().slots.total is not None and settings().prepare_ahead:
        essential.start("pictures ahead", Ahead(services()).run, may_return=True)


@worker_ready.connect
def _serve_metrics(**_: Any) -> None:
    metrics.serve(settings())


@inspect_command()
def imprint_trains(state: Any) -> dict[str, Any]:
    """The answer to `imprint backends`: the queues of this worker, its device, and the families that it refuses."""
    consumer = state.consumer.task_consumer
    taken = [queue.name for queue in consumer.queues] if consumer else []
    if _trains_on is None:
        return {"queues": taken, "device": None}
    refused = [queues.TRAIN + family for family in _trains_on.refused]
    device = {"device": _trains_on.name, "check": _trains_on.verdict, "refuses": refused}
    return {"queues": sorted({*taken, *refused}), **device}


@worker_shutting_down.connect
def _hand_over(**_: Any) -> None:
    # Trainings write a checkpoint and end; Celery waits for their tasks to return.
    control.leaving.set()
    if _heartbeat is not None:
        _heartbeat.leave()


# With spinning OpenMP threads on shared cores, a training took 5 to 7 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
