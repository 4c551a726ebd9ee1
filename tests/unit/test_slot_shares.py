"""Turns between owners for the slots of a worker."""

from core.fairness.slot_shares import SlotShares


def taken(shares: SlotShares, owner_id: str, most: int = 100) -> int:
    """How many slots the owner gets when it asks for as many as it can."""
    return next((count for count in range(most) if shares.take(owner_id)), most)


def test_no_owner_and_no_few_owners_get_every_slot() -> None:
    shares = SlotShares(16)
    assert taken(shares, "ada") == 12
    assert taken(shares, "bob") == 3
    assert shares.take("cleo") == 0.0


def test_what_is_given_back_can_be_taken_again() -> None:
    shares = SlotShares(4)
    assert taken(shares, "ada") == 3
    shares.give_back("ada")
    assert shares.take("ada") == 0.0
    for _ in range(3):
        shares.give_back("ada")
    assert not shares._taken  # names of owners do not pile up


def test_one_slot_is_for_everybody() -> None:
    shares = SlotShares(1)
    assert taken(shares, "ada") == 1
    assert shares.take("bob") > 0


def test_what_is_turned_away_comes_back_one_by_one_within_a_minute() -> None:
    shares = SlotShares(4, clock=lambda: 100.0)
    taken(shares, "ada")
    waits = [shares.take("ada") for _ in range(2000)]
    assert waits[:3] == sorted(set(waits[:3]))
    assert 0 < waits[0] < 1
    assert max(waits) == 60.0


def test_what_waits_for_slow_hosts_comes_back_seldom_and_for_quick_ones_at_once() -> None:
    now = [100.0]
    shares = SlotShares(16, clock=lambda: now[0])
    taken(shares, "slow")
    now[0] += 10.0  # none of its 12 slots has become free
    assert shares.take("slow") == 1.0
    assert taken(shares, "quick") == 3
    for _ in range(20):
        now[0] += 0.1
        shares.give_back("quick")
        assert shares.take("quick") == 0.0
    assert 0.09 < shares.take("quick") < 0.11
    now[0] += 3600.0
    assert shares.take("slow") <= 1.0
    for _ in range(12):
        shares.give_back("slow")
    for _ in range(3):
        shares.give_back("quick")
    assert not shares._moved


def test_slots_that_are_not_counted_are_not_shared() -> None:
    assert taken(SlotShares(), "ada") == 100
