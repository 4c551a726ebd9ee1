"""A running site for tests that break nothing; sites whose workers may die are in cluster.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.site import Site, site


@pytest.fixture(scope="module")
def shared_site(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for each module: each test has an owner of its own on it."""
    with site(tmp_path_factory.mktemp("site"), base_model) as running:
        yield running
