"""A running site for tests that break nothing, and one for pytest-celery's `celery_setup`, whose workers may die."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from pytest_celery import CeleryBackendCluster, CeleryBrokerCluster, CeleryWorkerCluster

from tests.integration import cluster
from tests.site import Site, site


@pytest.fixture(scope="session")
def shared_site(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for each test process; each test has an owner of its own on it."""
    with site(tmp_path_factory.mktemp("site"), base_model) as running:
        yield running


# ---- pytest-celery's clusters, made of the processes of a site; a module may override `celery_site` ----


@pytest.fixture
def celery_site(base_model: Path, tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path, base_model) as running:
        yield running


@pytest.fixture
def celery_broker_cluster(celery_site: Site) -> CeleryBrokerCluster:
    return CeleryBrokerCluster(cluster.broker(celery_site))


@pytest.fixture
def celery_backend_cluster(celery_site: Site) -> CeleryBackendCluster:
    return CeleryBackendCluster(cluster.backend(celery_site))


@pytest.fixture
def celery_worker_cluster(celery_site: Site) -> CeleryWorkerCluster:
    """The workers that run, in the order of their start."""
    names = [name for name in celery_site.processes if name.partition("-")[0] in ("io", "train")]
    return CeleryWorkerCluster(*(cluster.worker(celery_site, name) for name in names))


@pytest.fixture
def celery_setup_app(celery_site: Site) -> Celery:
    """An application that knows the broker's address and the names of our tasks, and none of our code."""
    return celery_site.application
