"""What the folder promises beyond the contract: nothing half-written, nothing left behind."""

import fcntl
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from core.errors import NotFound, StoreUnavailable
from storage.objects.local import LocalStore


def test_the_folder_is_left_clean(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store.put("a/b/c", b"x")
    store.put("a/d", b"x")
    store.delete("a/b/c")
    assert not (tmp_path / "store/a/b").exists()
    store.delete_prefix("a/")
    assert [path.name for path in (tmp_path / "store").rglob("*")] == [".tmp"]


def test_folders_come_and_go_under_writers(tmp_path: Path) -> None:
    """One thread's last delete removes the folder that another is about to write into."""
    store = LocalStore(tmp_path / "store")

    def work(number: int) -> None:
        for _ in range(50):
            store.put(f"one/two/{number}", b"x")
            store.delete(f"one/two/{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert list(store.list("")) == []


_FULL_DISK = """
import resource, sys
from pathlib import Path
from core.errors import StoreUnavailable
from storage.objects.local import LocalStore

store = LocalStore(Path(sys.argv[1]))
store.put("a/old", b"old")
source = Path(sys.argv[1] + ".source")
source.write_bytes(b"x" * 300_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
for write in (lambda: store.put("a/old", b"x" * 300_000), lambda: store.put_file("a/new", source)):
    try:
        write()
    except StoreUnavailable as error:
        assert error.retryable
        print(error)
assert store.get("a/old") == b"old" and list(store.list("")) == ["a/old"]
try:
    store.get_file("a/old", Path("/proc/none"))
except StoreUnavailable:
    print("no room for the copy")
"""


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout.splitlines() == [
        "the object store's folder cannot be used: File too large",
        "the object store's folder cannot be used: File too large",
        "no room for the copy",
    ]
    assert list((tmp_path / "store/.tmp").iterdir()) == []


_KILLED = """
import os, signal, sys
from pathlib import Path
from storage.objects.local import LocalStore

class Dies(LocalStore):
    def _place(self, path, target, create_only):
        os.utime(path, (1, 1))  # long ago, so that nobody has to wait
        os.kill(os.getpid(), signal.SIGKILL)

Dies(Path(sys.argv[1])).put("a/b", b"half")
"""


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "store")], timeout=240, check=False)
    assert run.returncode == -9
    left = list((tmp_path / "store/.tmp").iterdir())
    assert len(left) == 1
    store = LocalStore(tmp_path / "store")
    assert list(store.list("")) == []
    with left[0].open("rb") as held:  # a living writer's lock keeps its file
        fcntl.flock(held, fcntl.LOCK_SH)
        store.put("a/b", b"whole")
        assert left[0].exists()
    store.put("a/b", b"whole")
    assert list((tmp_path / "store/.tmp").iterdir()) == []


def test_a_writer_whose_file_was_taken_for_a_dead_ones_writes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy machine may let it stand still for a second between its new file and the lock."""
    store, taken = LocalStore(tmp_path / "store"), list[Path]()
    flock = fcntl.flock

    def late(file: Any, how: int) -> None:
        if how == fcntl.LOCK_SH and not taken and not isinstance(file, int):
            taken.append(Path(file.name))
            os.utime(file.name, (1, 1))
            store._clear_dead()
            assert not taken[0].exists()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    store.put("a/b", b"x")
    assert (store.get("a/b"), len(taken)) == (b"x", 1)
    assert list((tmp_path / "store/.tmp").iterdir()) == []


def test_an_unwritable_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"a file is in the way")
    store = LocalStore(tmp_path / "store")
    with pytest.raises(StoreUnavailable):
        store.put("a/b", b"x")
    with pytest.raises(NotFound):
        store.get("a/b")
