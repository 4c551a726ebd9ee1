"""Ids: their look, their order, and that no two are alike."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from core import ids
from core.ids import new_id
from storage.objects import checked_key


def test_looks_like_its_prefix_and_26_characters_that_nobody_misreads() -> None:
    assert re.fullmatch(r"job_[0-9a-hjkmnp-tv-z]{26}", new_id("job"))


def test_is_good_as_a_key_of_the_store() -> None:
    assert checked_key(f"models/{new_id('job')}/lora_weights.safetensors")


def test_later_ones_sort_after_earlier_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [0, 1, 31, 32, 1 << 20, 1_700_000_000_000, (1 << 48) - 1]  # milliseconds, up to the last that fits
    made = []
    for milliseconds in times:
        monkeypatch.setattr(ids.time, "time_ns", lambda now=milliseconds: now * 1_000_000)
        made.append(new_id("job"))
    assert made == sorted(made)
    assert {len(one) for one in made} == {30}


def test_no_two_are_alike_though_made_in_the_same_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids.time, "time_ns", lambda: 1_700_000_000_000_000_000)
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: new_id("m"), range(20_000)))
    assert len(set(made)) == len(made)
