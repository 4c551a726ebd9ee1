"""The text of `/metrics`: the answers of this process, and the state of the installation."""

import logging
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, start_http_server
from prometheus_client.core import Metric

from core.settings import Settings
from jobs.services import Services
from tasks.workers.fleet import lengths
from web.installation_metrics import InstallationMetrics

log = logging.getLogger(__name__)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class WebMetrics:
    """The metrics of one app."""

    def __init__(self, services: Services, lengths: Callable[[], dict[str, int] | None] = lengths) -> None:
        self._registry = CollectorRegistry()
        self._answers = Counter(
            "imprint_http_requests", "Requests by method, route and status.", ("method", "route", "status"),
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "imprint_http_request_seconds", "Time from request to the end of the answer; event streams are left out.",
            ("route",), registry=self._registry, buckets=_SECONDS,
        )  # fmt: skip
        self._registry.register(InstallationMetrics(services, lengths))

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        known = method if method in ("GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS") else "other"
        self._answers.labels(known, route, str(status)).inc()
        if not route.endswith("/events"):
            self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)

    def families(self) -> Iterable[Metric]:
        """All of it, as it is now."""
        return self._registry.collect()

    def serve(self, settings: Settings) -> None:
        """Answer on a port of their own too, without a token, if the settings name one."""
        if settings.metrics_port is None:
            return
        server, _ = start_http_server(settings.metrics_port, settings.metrics_host, self._registry)
        log.info("metrics on http://%s:%d/metrics", *server.server_address[:2])
