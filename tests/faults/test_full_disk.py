"""The store's disk is full: the job fails with `upload_failed` after its attempts, costs nothing and leaves nothing.

The disk is a small one of the workers' own: a tmpfs over the store's folder, in a mount namespace that only they and a
process that holds it open are in. The test looks into it through /proc, and another mount of it cannot be left behind.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobs import service
from jobs.lifecycle import sweeps
from jobs.owners import accounts
from notifications.tables import MESSAGE
from storage.objects.local import LocalStore
from tests.servers.process import ServerProcess
from tests.site import ROOT, Site, drawing, site, until

pytestmark = pytest.mark.drawn

SMALL, LARGE = "size=1m", "size=64m"
# Only root may mount; who is not becomes root of a namespace of users first.
AS_ROOT = os.geteuid() == 0
NAMESPACE = ["--mount"] if AS_ROOT else ["--user", "--map-root-user", "--mount"]


class Disk:
    """A tmpfs at `folder`, for the processes that are started through `inside`."""

    def __init__(self, folder: Path, log: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        mount = f"mount -t tmpfs -o {SMALL} store {folder} && echo mounted && exec sleep 100000"
        self.process = ServerProcess(["unshare", *NAMESPACE, "sh", "-c", mount], log=log, cwd=folder.parent)
        until(lambda: "mounted" in self.process.tail() or not self.process.alive, 60, "mounted")
        if not self.process.alive:
            self.process.end()
            pytest.fail(f"no mount namespaces here: {self.process.tail()}")

    @property
    def seen(self) -> Path:
        """The same folder as it is inside."""
        return Path(f"/proc/{self.process.pid}/root{self._folder}")

    def inside(self, *command: str) -> list[str]:
        user = [] if AS_ROOT else ["--user", "--preserve-credentials"]
        return ["nsenter", *user, "--mount", f"--target={self.process.pid}", f"--wdns={ROOT}", *command]

    def resize(self, size: str) -> None:
        done = self.inside("mount", "-o", f"remount,{size}", str(self._folder))
        subprocess.run(done, check=True, capture_output=True)

    def fill(self) -> None:
        """Write until nothing more goes in."""
        with (self.seen / "filler").open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(b"\0" * 4096)
            except OSError:
                return


class SiteOnDisk(Site):
    """A site whose workers run inside the disk's namespace; its store is that disk."""

    def __init__(self, folder: Path, base_model: Path, broker_url: str, **environment: str) -> None:
        super().__init__(folder, base_model, broker_url, **environment)
        self.disk = Disk(Path(self.settings.store), self.log("disk"))

    def celery(self, *arguments: str) -> list[str]:
        return self.disk.inside(*super().celery(*arguments))

    def end(self) -> None:
        super().end()
        self.disk.process.end(kill=True)


@pytest.fixture
def running(base_model: Path, tmp_path: Path) -> Iterator[SiteOnDisk]:
    roots = json.dumps([str(tmp_path / "pictures")])
    with site(tmp_path, base_model, kind=SiteOnDisk, IMPRINT_FILE_ROOTS=roots) as made:
        assert isinstance(made, SiteOnDisk)
        yield made


def drawings(folder: Path, first: int) -> list[str]:
    folder.mkdir(exist_ok=True)
    return [drawing(folder / f"{n}.png", n).as_uri() for n in range(first, first + 6)]


def failed_for_want_of_space(site: SiteOnDisk, job_id: str, stage: str) -> None:
    view = site.wait(job_id)
    assert (view["status"], view["stage"]) == ("failed", stage), view
    assert view["failure"]["code"] == "upload_failed"
    assert "No space left on device" in view["failure"]["message"]
    retries = [event.data for event in service.events(site.services, job_id) if event.kind == "retry"]
    attempts = {one.get("attempt") for one in retries}
    if stage == "preprocess":
        assert None in attempts, "it waited for space as long as for a picture's server"
    else:
        assert attempts == {1, 2}, "three attempts, the third one final"
    until(lambda: waiting_messages(site, job_id) == 0, 60, "cleaned up")
    left = LocalStore(site.disk.seen)
    assert [key for key in left.list("") if job_id in key] == []
    assert [file for file in (site.disk.seen / ".tmp").iterdir() if file.is_file()] == [], "nothing half-written"
    work = site.settings.home / "work"
    assert [path for path in work.rglob("*") if job_id in str(path)] == []


def waiting_messages(site: SiteOnDisk, job_id: str) -> int:
    with site.services.database.reading() as session:
        waiting = sa.select(sa.func.count()).where(
            MESSAGE.c.job_id == job_id, MESSAGE.c.sent_at.is_(None), MESSAGE.c.dead_at.is_(None)
        )
        return int(session.execute(waiting).scalar_one())


def test_a_full_store_fails_jobs_for_nothing_and_a_retry_succeeds_once_there_is_space(
    running: SiteOnDisk, tmp_path: Path
) -> None:
    site = running
    site.grant("owner")
    # The pictures go in, the trained file does not: at rank 256 it is larger than the whole disk.
    large = site.send(images=drawings(tmp_path / "pictures", 0), rank=256)["job_id"]
    failed_for_want_of_space(site, large, "train")
    # Nothing at all goes in.
    site.disk.fill()
    early = site.send(images=drawings(tmp_path / "pictures", 10))["job_id"]
    failed_for_want_of_space(site, early, "preprocess")
    balance = accounts.balance(site.services, "owner")
    assert (balance.available, balance.held, balance.spent) == (10_000, 0, 0)

    (site.disk.seen / "filler").unlink()
    site.disk.resize(LARGE)
    for job_id in (large, early):
        again = json.loads(site.imprint("retry", job_id, "--json").stdout)["job_id"]
        view = site.wait(again)
        assert view["status"] == "ready", view["failure"]
        data = LocalStore(site.disk.seen).get(view["lora"]["key"])
        assert hashlib.sha256(data).hexdigest() == view["lora"]["sha256"]
    assert sweeps.run_audit(site.services) == []
    assert [entry.kind for entry in accounts.statement(site.services, "owner")] == [
        "settle", "hold", "settle", "hold", "release", "hold", "release", "hold", "grant"
    ]  # fmt: skip
