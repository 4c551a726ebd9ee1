"""What a worker does when it starts and when it is asked to stop."""

import logging
import os
from importlib import import_module
from typing import Any

from celery.signals import (
    celeryd_init,
    setup_logging,
    worker_init,
    worker_process_init,
    worker_ready,
    worker_shutting_down,
)
from celery.worker.control import inspect_command

from core.errors import ImprintError
from core.logging import set_up
from core.settings import settings
from jobs.services import services
from jobs.stages import control
from jobs.stages.stage_runner import clear_dead_work_dirs
from tasks import metrics

log = logging.getLogger(__name__)

_device: list[str] = []  # the name of what this worker trains on, once it was tried


@setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    # Beat, started by itself on a new home, keeps its schedule there.
    settings().run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    set_up(settings().log_dir, settings().log_level, settings().log_format)


@worker_init.connect
def _prepare(**_: Any) -> None:
    try:
        services().check()
        services().database.migrate()
    except (ValueError, ImprintError) as error:
        raise SystemExit(f"this worker cannot start: {error}") from None  # any other error Celery logs and goes on
    services().database.close()  # children of a prefork pool open their own
    clear_dead_work_dirs(services())
    metrics.begin(settings())


@celeryd_init.connect
def _seat_jobs(conf: Any, options: dict[str, Any], **_: Any) -> None:
    """A training worker takes as many jobs as it trains in one step, unless `-c` says another number."""
    if not options.get("concurrency") and any(name.startswith("train.") for name in options.get("queues") or ()):
        from training.device import seats  # torch: only on workers that train

        conf.worker_concurrency = settings().cohort or seats(settings().device)


@worker_process_init.connect
def _leave_the_port(**_: Any) -> None:
    metrics.leave_to_parent()


@worker_ready.connect
def _say_what_trains(sender: Any, **_: Any) -> None:
    metrics.serve(settings())
    queues = [queue.name for queue in sender.task_consumer.queues]
    if any(name.startswith("train.") for name in queues):
        metrics.expect(name.removeprefix("train.") for name in queues if name.startswith("train."))
        # torch: only on workers that train, and before the first job, which need not wait for it then
        from training.device import probe

        import_module("training.backends.local")
        report = probe(settings().device, deterministic=settings().deterministic)
        log.info("%s", report.text)
        _device.append(report.name)


@inspect_command()
def imprint_trains(state: Any) -> dict[str, Any]:
    """What `imprint backends` asks: the queues of this worker, and what it trains on."""
    consumer = state.consumer.task_consumer
    queues = [queue.name for queue in consumer.queues] if consumer else []
    return {"queues": queues, "device": _device[0] if _device else None}


@worker_shutting_down.connect
def _hand_over(**_: Any) -> None:
    # Trainings checkpoint and leave; Celery then waits for their tasks to return.
    control.leaving.set()


# Spinning OpenMP threads on shared cores made the same training 5 to 7 times slower (FINDINGS.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
