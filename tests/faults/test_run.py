"""The fault run in its short form, and that a seed gives one plan. `make faults` is the whole of it."""

import json
import os
from pathlib import Path

import pytest

from tests.faults.run.__main__ import main
from tests.faults.run.plan import KINDS, make_plan
from tests.samples import FULL

WORDS = ["seed", "jobs", "ready", "failed", "cancelled", "faults", "redelivered", "lost", "stuck", "double_charged",
         "unnotified", "audit_ok", "seconds"]  # fmt: skip


def test_a_seed_is_one_plan_in_which_every_fault_has_its_turn() -> None:
    plan = make_plan(5, 200, 500, 140)
    assert plan == make_plan(5, 200, 500, 140)
    assert plan != make_plan(6, 200, 500, 140)
    assert {fault.kind for fault in plan.faults} == {kind.name for kind in KINDS}
    assert {order.what for order in plan.orders} == {"good", "bad pictures", "too few", "broken base"}
    ends: dict[str, float] = {}
    for fault in plan.faults:  # nobody is killed while it is down already
        assert fault.at_s >= ends.get(fault.target, 0)
        ends[fault.target] = fault.at_s + fault.lasts_s


@pytest.mark.timeout(900)
def test_nothing_is_lost_in_a_short_run(base_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dozen trainings, eight faults; twice that in a full run. SEED chooses another plan."""
    jobs, faults, seconds = (24, 10, 30) if FULL else (12, 8, 20)
    asked = {"--seed": os.environ.get("SEED", "33"), "--jobs": jobs, "--faults": faults, "--seconds": seconds}
    code = main([str(part) for pair in asked.items() for part in pair], base_model)
    printed = capsys.readouterr()
    assert code == 0, f"{printed.out}\n{printed.err}"
    result = json.loads(printed.out.splitlines()[-1])
    assert list(result) == WORDS
    assert result["jobs"] == result["ready"] + result["failed"] + result["cancelled"] == jobs
    assert result["faults"] == faults
    assert result["ready"] >= jobs // 2
