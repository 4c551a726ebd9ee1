"""The metrics that the web process registers, with their labels, read from an empty installation."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.settings import Settings
from jobs.services import Services
from web.metrics import WebMetrics


@contextmanager
def empty_services() -> Iterator[Services]:
    """Services of an empty installation in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        services = Services(Settings(_env_file=None, home=Path(folder)))  # type: ignore[call-arg]
        try:
            yield services
        finally:
            services.database.close()


def families() -> list[tuple[str, str, tuple[str, ...], str]]:
    """Name, kind, labels and description of each metric, sorted by name."""
    with empty_services() as services:
        metrics = WebMetrics(services, lengths=lambda: {"io": 0})
        metrics.observe("GET", "/healthz", 200, 0.001)
        found = []
        for family in metrics.families():
            labels = {name for sample in family.samples for name in sample.labels if name != "le"}
            found.append((family.name, family.type, tuple(sorted(labels)), family.documentation))
    return sorted(found)
