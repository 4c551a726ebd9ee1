"""The fault run in its short form, and that a seed gives one plan. `make faults` is the whole of it."""

import json
import os
import subprocess
import sys

import pytest

from tests.faults.run.plan import KINDS, make_plan
from tests.samples import FULL
from tests.site import ROOT

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
def test_nothing_is_lost_in_a_short_run() -> None:
    """A dozen trainings, eight faults; twice that in a full run. SEED chooses another plan."""
    jobs, faults, seconds = (24, 10, 30) if FULL else (12, 8, 20)
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.run", "--seed", os.environ.get("SEED", "33"),
         "--jobs", str(jobs), "--faults", str(faults), "--seconds", str(seconds), "--quiet-s", "500"],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=850, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    result = json.loads(done.stdout.splitlines()[-1])
    assert list(result) == WORDS
    assert result["jobs"] == result["ready"] + result["failed"] + result["cancelled"] == jobs
    assert result["faults"] == faults
    assert result["ready"] >= jobs // 2
