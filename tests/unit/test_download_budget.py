"""Budgets of time for downloads, with a clock of the test's own."""

from itertools import repeat

import pytest

from core.errors import AnswerRefused, Unreachable
from core.outbound.download_budget import DownloadBudget, Requester

ADA = Requester("ada", "job_1")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def spend(
    budget: DownloadBudget, clock: Clock, seconds: float, who: Requester = ADA, error: Exception | None = None
) -> None:
    with budget.spending(who, "slow.example"):
        clock.now += seconds
        if error is not None:
            raise error


def test_a_request_has_its_time_in_all() -> None:
    clock = Clock()
    budget = DownloadBudget(request_s=100, host_s=1000, clock=clock)
    spend(budget, clock, 60)
    with budget.spending(ADA, "other.example") as left_s:
        assert left_s == 40
        clock.now += 40
    with pytest.raises(AnswerRefused, match="IMPRINT_FETCH_REQUEST_S"):
        spend(budget, clock, 0)
    spend(budget, clock, 1, Requester("ada", "job_2"))


def test_a_host_that_failed_for_long_is_not_called_for_this_owner() -> None:
    clock = Clock()
    budget = DownloadBudget(request_s=10_000, host_s=30, clock=clock)
    spend(budget, clock, 100)  # slow, but it sent the picture
    for _ in repeat(None, 3):
        with pytest.raises(Unreachable, match="in time"):
            spend(budget, clock, 10, error=Unreachable("slow.example did not answer in time"))
    with pytest.raises(Unreachable, match="IMPRINT_FETCH_HOST_S") as caught:
        spend(budget, clock, 0)
    assert caught.value.retry_after_s == 580, "ten minutes after the first failure ended"
    spend(budget, clock, 1, Requester("bob", "job_2"))
    clock.now += 600
    spend(budget, clock, 1)


def test_a_refusal_is_an_answer_and_costs_the_host_nothing() -> None:
    clock = Clock()
    budget = DownloadBudget(request_s=10_000, host_s=30, clock=clock)
    with pytest.raises(AnswerRefused):
        spend(budget, clock, 31, error=AnswerRefused("slow.example answered 404"))
    spend(budget, clock, 1)
