"""The files that run first."""

from tests.site import ROOT
from tests.slowest import SLOWEST, place


def test_they_are_there_and_come_before_all_others() -> None:
    assert [name for name in SLOWEST if not (ROOT / name).is_file()] == []
    assert sorted(["tests/unit/test_ids.py", *SLOWEST[::-1]], key=place) == [*SLOWEST, "tests/unit/test_ids.py"]
