"""One short attack of each kind, on one installation. `make faults` mixes them."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.attacks import ATTACKS
from tests.attacks.world import AFTER_S, Times, World, world


@pytest.fixture(scope="module")
def attacked(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Times]]:
    with world(tmp_path_factory.mktemp("attacked"), base_model) as made:
        yield made, made.normal()
        assert made.audit_is_clean()
        assert made.sums_are_right()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_another_owner_hardly_notices(attacked: tuple[World, Times], name: str) -> None:
    made, normal = attacked
    with ATTACKS[name](made):
        during = made.measure()
        assert made.is_ready()
    ended = time.monotonic()
    assert during.is_normal(normal), f"{during} during the attack; normal is {normal}"
    while not (after := made.measure()).is_normal(normal):
        assert time.monotonic() - ended < AFTER_S, f"{after} a minute after the attack; normal is {normal}"
