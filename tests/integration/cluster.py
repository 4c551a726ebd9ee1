"""pytest-celery on processes instead of containers: its nodes are the servers and workers of a `Site`.

Its own fixtures start Docker containers. These nodes give its `celery_setup` a broker, a result backend and workers
that a test restarts, kills and reads the logs of; no Docker engine is needed.
"""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestBackend,
    CeleryTestBroker,
    CeleryTestWorker,
    CeleryWorkerCluster,
)

from tests.site import Site, site


class ProcessContainer:
    """What pytest-celery asks of a container, for one process of a site: a worker by its name, or the broker."""

    def __init__(self, site: Site, name: str) -> None:
        self.site, self.name = site, name

    @property
    def id(self) -> str:
        return "test"  # a worker's host name, after the @

    @property
    def status(self) -> str:
        process = self.site.processes.get(self.name)
        return "running" if process and process.alive else "exited"

    @property
    def celeryconfig(self) -> dict[str, Any]:
        url = self.site.application.conf.broker_url
        return {"url": url, "host_url": url}

    def worker_name(self) -> str:
        return self.name

    def logs(self) -> str:
        return self.site.log(self.name).read_text()

    def kill(self, signal: str | int = signal.SIGKILL) -> None:
        if signal in ("SIGTERM", 15):
            assert self.site.stop(self.name) == 0, self.logs()[-3000:]
        else:
            self.site.kill(self.name)

    def restart(self, timeout: int = 60) -> None:
        """As `docker restart`: SIGTERM where it runs, and a start; returns when it is ready."""
        if self.status == "running":
            self.kill("SIGTERM")
        self.site.start(self.name)

    def ready(self) -> bool:
        return self.status == "running"

    def reload(self) -> None: ...

    def teardown(self) -> None: ...


class ServerContainer(ProcessContainer):
    """The site's broker and result backend, which its `with` block starts and ends."""

    status = "running"


def worker(site: Site, name: str) -> CeleryTestWorker:
    return CeleryTestWorker(ProcessContainer(site, name), site.application)


def broker(site: Site) -> CeleryTestBroker:
    return CeleryTestBroker(ServerContainer(site, "broker"), site.application)


def backend(site: Site) -> CeleryTestBackend:
    return CeleryTestBackend(ServerContainer(site, "broker"), site.application)


# ---- the fixtures that `celery_setup` asks for; a module may override `celery_site` ----


@pytest.fixture
def celery_site(base_model: Path, tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path, base_model) as running:
        yield running


@pytest.fixture
def celery_broker_cluster(celery_site: Site) -> CeleryBrokerCluster:
    return CeleryBrokerCluster(broker(celery_site))


@pytest.fixture
def celery_backend_cluster(celery_site: Site) -> CeleryBackendCluster:
    return CeleryBackendCluster(backend(celery_site))


@pytest.fixture
def celery_worker_cluster(celery_site: Site) -> CeleryWorkerCluster:
    """The workers that run, in the order of their start."""
    names = [name for name in celery_site.processes if name.partition("-")[0] in ("io", "train")]
    return CeleryWorkerCluster(*(worker(celery_site, name) for name in names))


@pytest.fixture
def celery_setup_app(celery_site: Site) -> Celery:
    """An application that knows the broker's address and the names of our tasks, and none of our code."""
    return celery_site.application
