"""A worker's metrics for Prometheus, served by its main process on its own port.

The processes of a prefork pool write their counts into files in a private folder (prometheus_client's multiprocess
mode), and the main process adds them up for each request.
"""

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from typing import Any

from core.settings import Settings
from core.telemetry import metrics
from core.telemetry.metrics import Measure
from storage.tables.jobs import Stage

log = logging.getLogger(__name__)

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_served: list[Any] = []  # the HTTP server, in the main process


class _Prometheus:
    """Stores measures as prometheus_client's metrics."""

    def __init__(self, registry: Any) -> None:
        self._metrics = {measure.name: _metric(measure, registry) for measure in metrics.ALL}

    def record(self, measure: Measure, amount: float, labels: tuple[str, ...]) -> None:
        metric = self._metrics[measure.name]
        part = metric.labels(*labels) if labels else metric
        if measure.kind == "counter":
            part.inc(amount)
        elif measure.kind == "gauge":
            part.set(amount)
        else:
            part.observe(amount)


def _metric(measure: Measure, registry: Any) -> Any:
    from prometheus_client import Counter, Gauge, Histogram

    arguments = (measure.name, measure.description, measure.labels)
    if measure.kind == "counter":
        return Counter(*arguments, registry=registry)
    if measure.kind == "gauge":
        return Gauge(*arguments, registry=registry, multiprocess_mode="mostrecent")
    return Histogram(*arguments, registry=registry, buckets=measure.buckets)


def begin(settings: Settings) -> None:
    """Count in this process and its forks. Call it before the pool starts. Without a port it does nothing."""
    if settings.metrics_port is None:
        return
    folder = tempfile.mkdtemp(prefix="imprint-metrics-")
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    os.environ[_FOLDER] = folder
    from prometheus_client import CollectorRegistry, values

    # prometheus_client chooses its mode when it is imported, and Celery has imported it for Flower's command already.
    values.ValueClass = values.MultiProcessValue()  # type: ignore[no-untyped-call]
    metrics.set_sink(_Prometheus(CollectorRegistry()))
    # From 0 on, because Prometheus does not see a rise from nothing to 1.
    metrics.LOG_LINES_LOST.add(0)
    for stage in Stage:
        metrics.STAGES_OVERDUE.add(0, stage)


def serve(settings: Settings) -> None:
    """Serve the metrics on the worker's port, in a thread of the main process."""
    if settings.metrics_port is None:
        return
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry, os.environ[_FOLDER])  # type: ignore[no-untyped-call]
    try:
        server, _ = start_http_server(settings.metrics_port, settings.metrics_host, registry)
    except OSError as error:
        # A worker without metrics is better than no worker.
        log.error("no metrics on %s:%d: %s", settings.metrics_host, settings.metrics_port, error.strerror)
        return
    _served.append(server)
    log.info("metrics on http://%s:%d/metrics", *server.server_address[:2])


def expect(families: Iterable[str]) -> None:
    """Begin a training worker's counters at 0, because Prometheus does not see a rise from nothing to 1."""
    for family in families:
        metrics.STEPS.add(0, family)
        for result in ("loaded", "resident"):
            metrics.BASE_MODELS.add(0, family, result)
    for kind in ("picture", "caption"):
        for result in ("found", "made"):
            metrics.ENCODINGS.add(0, kind, result)


def leave_to_parent() -> None:
    """In a forked child: close the port, which belongs to the main process and must be free when that ends."""
    for server in _served:
        server.socket.close()
    _served.clear()
