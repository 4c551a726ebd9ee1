"""Short attacks on one installation, one kind at a time.

`make test` takes a sample, `make test-full` takes all. `make faults` mixes the attacks, each kind at least once.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.attacks import ATTACKS
from tests.attacks.world import AFTER_S, Times, World, world
from tests.samples import sample

# Other tests share the machine, so its speed varies. The attacks used to keep others waiting for minutes.
# `python -m tests.attacks`, on a machine of its own, allows nothing but twice the normal time.
_SLACK_S = 30.0
# Attacks in one test: pytest-xdist gives each test of a module to any process, and each process that gets one has to
# start the installation and measure its normal times, which takes longer than an attack.
_TOGETHER = 3
NAMES = sample(sorted(ATTACKS), _TOGETHER, "attacks")


@pytest.fixture(scope="module")
def attacked(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Times]]:
    with world(tmp_path_factory.mktemp("attacked"), base_model) as made:
        yield made, made.normal()
        assert made.audit_is_clean()
        assert made.sums_are_right()


@pytest.mark.timeout(600 * _TOGETHER)
@pytest.mark.parametrize(
    "names", [NAMES[place : place + _TOGETHER] for place in range(0, len(NAMES), _TOGETHER)], ids=" and ".join
)
def test_another_owner_hardly_notices(attacked: tuple[World, Times], names: list[str]) -> None:
    made, normal = attacked
    for name in names:
        with ATTACKS[name](made):
            during = made.measure()
            assert made.is_ready(), name
        ended = time.monotonic()
        assert during.is_normal(normal, _SLACK_S), f"{name}: {during} during the attack; normal is {normal}"
        while not (after := made.measure()).is_normal(normal, _SLACK_S):
            assert time.monotonic() - ended < AFTER_S, f"{name}: {after} a minute after it; normal is {normal}"
