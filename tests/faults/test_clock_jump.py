"""The clock jumps by an hour as when it is set after a start, or is an hour off on one machine of several."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.lifecycle import sweeps
from jobs.owners import accounts
from storage.tables.jobs import Job
from tests.samples import sample
from tests.servers.process import ServerProcess
from tests.site import Site, site, until

pytestmark = pytest.mark.drawn

OFFSETS = ("+1h", "-1h")

# libfaketime changes what a process reads as the time; it reads the offset from a file, once a second: at every
# call it took as long as the training.
LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


class SiteWithClock(Site):
    """A site whose processes read the time with an offset that the test sets."""

    fakes = ("io", "train")  # not beat: libfaketime 0.9.10 breaks the `time.sleep` of Python 3.11, which beat ends with

    def __init__(self, folder: Path, *arguments: Any, **environment: str) -> None:
        self._is_faked = True
        super().__init__(folder, *arguments, **environment)
        self._offset = folder / "offset"
        self.set_clock("+0")
        self.environment |= {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DISABLE_SHM": "1",
        }

    def surroundings(self, **environment: str) -> dict[str, str]:
        return super().surroundings(**environment) if self._is_faked else super().surroundings(LD_PRELOAD="")

    def start(self, name: str, *, wait: bool = True, **environment: str) -> ServerProcess:
        # A preloaded library takes an interpreter of its own.
        self._is_faked = self.fresh = name in self.fakes
        return super().start(name, wait=wait, **environment)

    def end(self) -> None:
        super().end()
        for file in Path("/dev/shm").glob("*faketime_s*_*"):  # noqa: S108 - what killed processes leave there
            if not Path("/proc", file.name.rpartition("_")[2]).exists():
                file.unlink(missing_ok=True)

    def set_clock(self, offset: str) -> None:
        part = self._offset.with_suffix(".part")
        part.write_text(f"{offset}\n")
        part.replace(self._offset)


class SiteWithOneClock(SiteWithClock):
    """The machine of the io worker has a clock of its own."""

    fakes = ("io",)


@pytest.mark.skipif(LIBRARY is None, reason="needs libfaketime: apt-get install libfaketime")
@pytest.mark.parametrize("jump", sample(OFFSETS, 1, "jumps of the clock"))
def test_an_hour_in_mid_training(jump: str, base_model: Path, tmp_path: Path) -> None:
    with site(tmp_path, base_model, kind=SiteWithClock, IMPRINT_SWEEP_S="2") as running:
        assert isinstance(running, SiteWithClock)
        running.grant("owner")
        job_id = running.send(max_steps=200)["job_id"]
        running.wait(job_id, lambda view: view["step"] > 0)
        running.set_clock(jump)
        until(lambda: leases_are_off(running, job_id), 60, "the new time counts")
        other = running.send()["job_id"]
        # A worker that dies afterwards: its lease ends by the clock of now, and a sweep finds it.
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


@pytest.mark.skipif(LIBRARY is None, reason="needs libfaketime: apt-get install libfaketime")
@pytest.mark.parametrize("off", sample(OFFSETS, 1, "machines with another clock"))
def test_one_machine_is_an_hour_off(off: str, base_model: Path, tmp_path: Path) -> None:
    """Its sweeps run, take no work from a worker that lives, and find the work of one that has died."""
    with site(
        tmp_path, base_model, kind=SiteWithOneClock, start=("train", "beat"), database="postgresql", IMPRINT_SWEEP_S="1"
    ) as running:
        assert isinstance(running, SiteWithOneClock)
        running.set_clock(off)
        running.start("io")
        running.grant("owner")
        job_id = running.send(max_steps=200)["job_id"]
        running.wait(job_id, lambda view: view["step"] > 0)
        token = lease_token(running, job_id)
        for _ in range(3):
            before = last_sweep(running)
            until(lambda before=before: last_sweep(running) > before, 60, "a sweep")  # type: ignore[misc]
        assert lease_token(running, job_id) == token
        assert running.view(job_id)["stage"] == "train", "the training must still run: give it more steps"
        running.kill("train")
        running.start("train")
        assert running.wait(job_id, timeout_s=240)["status"] == "ready"
        assert lease_token(running, job_id) > token
        how = "ahead of" if off == "+1h" else "behind"
        assert f"this machine's clock is 3600 s {how} the database server's" in running.log("io").read_text()
        assert sweeps.run_audit(running.services) == []


def last_sweep(running: Site) -> datetime:
    with running.services.database.reading() as session:
        return sweeps.last_sweep(session) or datetime.min.replace(tzinfo=UTC)


def leases_are_off(running: Site, job_id: str) -> bool:
    """Whether the processes have another time: the lease ends far from now, or a sweep found that it had ended."""
    with running.services.database.reading() as session:
        ends = session.get_one(Job, job_id).lease_until
    return ends is None or abs(ends - datetime.now(UTC)) > timedelta(minutes=30)


def lease_token(running: Site, job_id: str) -> int:
    with running.services.database.reading() as session:
        return session.get_one(Job, job_id).lease_token
