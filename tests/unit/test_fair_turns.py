"""Turns between owners."""

import threading
from contextlib import ExitStack

from core.fairness.fair_turns import FairTurns
from tests.site import until


def test_owners_take_turns_however_much_one_of_them_waits_for() -> None:
    turns, order = FairTurns(1), list[str]()
    threads = []

    def work(owner_id: str) -> None:
        with turns.hold(owner_id):
            order.append(owner_id)

    def waiting() -> int:
        return sum(map(len, turns._waiting.values()))

    with turns.hold("ada"):
        for count, owner_id in enumerate(["ada", "ada", "ada", "bob", "cleo", "bob"], start=1):
            threads.append(threading.Thread(target=work, args=(owner_id,)))
            threads[-1].start()
            until(lambda count=count: waiting() == count, 60, "it waits")  # type: ignore[misc]
    for thread in threads:
        thread.join(20)
    assert order == ["ada", "bob", "cleo", "ada", "bob", "ada"]


def test_as_many_run_as_there_are_turns() -> None:
    turns = FairTurns(3)
    for _ in range(2):
        with ExitStack() as held:
            for owner_id in ("ada", "ada", "bob"):
                held.enter_context(turns.hold(owner_id))
            assert turns._free == 0
        assert (turns._free, dict(turns._waiting)) == (3, {})
