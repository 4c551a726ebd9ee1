"""A fresh site for each test: these break things."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.site import Site, make_base, site


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base model, made once for all test processes."""
    shared = tmp_path_factory.getbasetemp()
    return make_base((shared.parent if shared.name.startswith("popen-") else shared) / "bases")


@pytest.fixture(scope="session")
def shared_site(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A running site that many tests use, each with an owner of its own."""
    with site(tmp_path_factory.mktemp("site"), base_model) as running:
        yield running
