"""Imprint on Redis and on RabbitMQ, with the worker of the shop beside it."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import base_model
from tests.samples import sample
from tests.servers.shop import Shop
from tests.site import site

__all__ = ["base_model"]


@pytest.fixture(scope="module", params=sample(["redis", "rabbitmq"], 1, "brokers of the shop"))
def shop(request: pytest.FixtureRequest, base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with site(tmp_path_factory.mktemp("shop"), base_model, broker=request.param, IMPRINT_IO_CONCURRENCY="2") as running:
        made = Shop(running)
        made.start()
        yield made
        made.module.app.close()


@pytest.fixture
def owner(shop: Shop) -> str:
    """An owner of this test's own, with credits. Its name is the number of its order, too."""
    name = f"owner-{secrets.token_hex(4)}"
    shop.site.grant(name)
    return name
