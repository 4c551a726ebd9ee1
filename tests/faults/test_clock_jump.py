"""The clock jumps by an hour, ahead or back, as when it is set after a start: nothing ends, nothing is paid twice."""

from pathlib import Path
from typing import Any

import pytest

from jobs.lifecycle import sweeps
from jobs.owners import accounts
from tests.servers.process import ServerProcess
from tests.site import Site, site

# libfaketime changes what a process reads as the time; it reads a file for the offset at every call.
LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


class SiteWithClock(Site):
    """A site whose processes read the time with an offset that the test sets."""

    def __init__(self, folder: Path, *arguments: Any, **environment: str) -> None:
        self._is_faked = True
        super().__init__(folder, *arguments, **environment)
        self.fresh = True  # a preloaded library takes an interpreter of its own
        self._offset = folder / "offset"
        self.set_clock("+0")
        self.environment |= {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DISABLE_SHM": "1",
        }

    def surroundings(self, **environment: str) -> dict[str, str]:
        return super().surroundings(**environment) if self._is_faked else super().surroundings(LD_PRELOAD="")

    def start(self, name: str, *, wait: bool = True, **environment: str) -> ServerProcess:
        # Not beat: libfaketime 0.9.10 breaks the `time.sleep` of Python 3.11, which beat ends with.
        self._is_faked = name != "beat"
        return super().start(name, wait=wait, **environment)

    def set_clock(self, offset: str) -> None:
        part = self._offset.with_suffix(".part")
        part.write_text(f"{offset}\n")
        part.replace(self._offset)


@pytest.mark.skipif(LIBRARY is None, reason="needs libfaketime: apt-get install libfaketime")
@pytest.mark.parametrize("jump", ["+1h", "-1h"])
def test_an_hour_in_mid_training(jump: str, base_model: Path, tmp_path: Path) -> None:
    with site(tmp_path, base_model, kind=SiteWithClock, IMPRINT_SWEEP_S="2") as running:
        assert isinstance(running, SiteWithClock)
        running.grant("owner")
        job_id = running.send(max_steps=150)["job_id"]
        running.wait(job_id, lambda view: view["step"] > 0)
        running.set_clock(jump)
        other = running.send()["job_id"]
        if jump == "-1h":
            # A worker that dies afterwards: its lease ends by the clock of now. After a jump ahead no sweep would run,
            # because a sweep has an end by beat's clock, which is not faked here.
            step = running.view(job_id)["step"]
            running.wait(job_id, lambda view: view["step"] > step or view["stage"] != "train")
            running.kill("train")
            running.start("train")
        for one in (job_id, other):
            view = running.wait(one, timeout_s=240)
            assert view["status"] == "ready", view["failure"]
        kinds = [entry.kind for entry in accounts.statement(running.services, "owner")]
        assert sorted(kinds) == ["grant", "hold", "hold", "settle", "settle"]
        for name, process in running.processes.items():
            assert process.alive, f"{name} ended with {process.returncode}: {process.tail()}"
        assert sweeps.run_audit(running.services) == []
