"""The decoder of pictures: what kills, hangs or exhausts it costs one picture, and it has nothing to give away."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.errors import ImageInvalid, WorkerLost
from core.settings import Settings
from jobs import service
from jobs.owners import accounts
from jobs.services import Services
from jobs.stages import intake, preprocessing
from storage.picture_report import StoredReport
from storage.tables.jobs import JobPicture, PictureState
from tests.contract.jobs import REQUEST
from tests.hostile.pictures import flat, jpeg_of_scans, picture
from tests.hostile.witness import witness
from tests.site import ROOT, until
from training.data import pictures
from training.data.decoding.decoder import Decoder

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits that only Linux has")


@pytest.fixture(scope="module")
def slow() -> bytes:
    """A picture that takes a second or two: each of its scans is decoded over the whole of it."""
    return jpeg_of_scans(90, (7000, 7000))


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    with Decoder() as made:
        yield made


def child_of(decoder: Decoder) -> int:
    """The process id of its one idle child."""
    (child,) = decoder._idle
    assert child._process is not None
    return child._process.pid


def children() -> set[int]:
    """Decoders that this process has started, whatever they do."""
    found = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "training.data.decoding.decoder_child"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {int(pid) for pid in found.stdout.split()}


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second: it went between the opening and the reading
        return True


def test_it_prepares_what_the_library_prepares(decoder: Decoder) -> None:
    for format_ in ("JPEG", "PNG", "WEBP", "AVIF"):
        data = picture(format_, size=(300, 200))
        for buckets in (False, True):
            assert decoder.prepare(data, resolution=128, aspect_buckets=buckets) == pictures.prepare(
                data, resolution=128, aspect_buckets=buckets
            )
            assert (
                decoder.report(data, resolution=128, aspect_buckets=buckets)
                == pictures.prepare(data, resolution=128, aspect_buckets=buckets, report_only=True).report
                == pictures.prepare(data, resolution=128, aspect_buckets=buckets).report
            )
    assert pictures.prepare(data, resolution=128, report_only=True).png == b""
    known = replace(pictures.prepare(data, resolution=128).report, sharpness=12.5)
    made = decoder.prepare(data, resolution=64, known=known)
    assert made == pictures.prepare(data, resolution=64, known=known)
    assert made.report.sharpness == 12.5, "it was not measured again"
    assert len(decoder._idle) == 1


def test_too_many_bytes_are_not_even_sent() -> None:
    with Decoder(max_bytes=100) as decoder, pytest.raises(ImageInvalid, match="at most 100 are accepted"):
        decoder.prepare(bytes(101), resolution=64)
    assert decoder._idle == []


# ---- what a picture may do to it ----


def test_a_picture_that_takes_too_much_work_is_one_bad_picture(slow: bytes) -> None:
    with Decoder(cpu_s=0.3) as decoder:
        good = picture("PNG")
        decoder.prepare(good, resolution=64)
        before = child_of(decoder)
        with pytest.raises(ImageInvalid, match=r"more than 0\.3 s of CPU time"):
            decoder.prepare(slow, resolution=2048)
        assert decoder.prepare(good, resolution=64).width == 64
        assert child_of(decoder) != before


def test_a_picture_that_takes_too_much_memory_is_one_bad_picture() -> None:
    with Decoder(memory_bytes=40_000_000) as decoder:
        with pytest.raises(ImageInvalid, match="more memory than its size allows"):
            decoder.prepare(flat("PNG", (5000, 5000)), resolution=64)
        assert decoder.prepare(picture("PNG"), resolution=64).width == 64


def test_a_decoder_that_hangs_is_one_bad_picture() -> None:
    with Decoder() as decoder:
        good = picture("PNG")
        decoder.prepare(good, resolution=64)
        decoder._wall_s = 0.5  # only now: a busy machine may take longer for the first one
        stopped = child_of(decoder)
        os.kill(stopped, signal.SIGSTOP)
        with pytest.raises(ImageInvalid, match=r"longer than 0\.5 s"):
            decoder.prepare(good, resolution=64)
        assert gone(stopped)
    with Decoder() as decoder:
        assert decoder.prepare(good, resolution=64).width == 64


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_picture_that_kills_two_decoders_is_one_bad_picture(
    slow: bytes, decoder: Decoder, number: signal.Signals
) -> None:
    """Killed in mid-picture from outside, for no picture here can: once may be somebody else's doing, twice is not."""
    good = picture("PNG")
    decoder.prepare(good, resolution=64)
    known, ended = children(), threading.Event()
    killed: set[int] = set()

    def kill() -> None:
        while not ended.wait(0.02):
            for pid in children() & (known if not killed else children() - known):
                if busy(pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
                        killed.add(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(ImageInvalid, match="crashes the decoder"):
            decoder.prepare(slow, resolution=2048)
    finally:
        ended.set()
        killer.join()
    assert len(killed) == 2
    assert decoder.prepare(good, resolution=64).width == 64


def busy(pid: int) -> bool:
    """Whether it has more memory than an idle one: it is decoding."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 > 120_000_000
    except (OSError, ValueError, IndexError):
        return False


def test_a_decoder_that_somebody_ended_costs_nothing(decoder: Decoder) -> None:
    good = picture("PNG")
    first = decoder.prepare(good, resolution=64)
    os.kill(child_of(decoder), signal.SIGKILL)
    assert decoder.prepare(good, resolution=64) == first


def test_a_machine_that_cannot_start_one_blames_no_picture(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    for nowhere, words in (("/nowhere/python", "does not start"), ("/bin/false", "ended at its start with status 1")):
        monkeypatch.setattr("training.data.decoding.decoder.sys.executable", nowhere)
        with pytest.raises(WorkerLost, match=words) as raised:
            decoder.prepare(picture("PNG"), resolution=64)
        assert raised.value.retryable


@pytest.mark.parametrize(
    "answer",
    [
        "channel.sendall(b'GET / HTTP/1.1')",
        "frames.send_frame(channel, {}, b'')",
        "frames.send_frame(channel, {'width': 64, 'height': 64, 'report': REPORT}, b'MZ')",
        "frames.send_frame(channel, {'width': 65, 'height': 64, 'report': REPORT}, PNG)",
        "frames.send_frame(channel, {'width': 64, 'height': 64, 'report': {**REPORT, 'faults': ['rm -rf']}}, PNG)",
        "frames.send_frame(channel, {'width': 64, 'height': 64, 'report': {**REPORT, 'more': 1}}, PNG)",
        "frames.send_frame(channel, {'width': 64, 'height': 64, 'report': {**REPORT, 'sharpness': float('nan')}}, PNG)",
        "frames.send_frame(channel, {'width': 64, 'height': 64, 'report': REPORT}, PNG + bytes(5_000_000))",
        "channel.sendall(b'\\xff' * 8)",
        "channel.sendall(b'\\0\\0\\0\\1\\0\\0\\0\\0[')",
    ],
)
def test_what_a_taken_over_decoder_says_is_not_believed(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that a picture has made its own answers what it likes; played by a program that does."""
    program = (
        "import json, socket, sys; sys.path[:] = json.loads(sys.argv[1])['path']\n"
        "from training.data.decoding import decoder_protocol as frames\n"
        "channel = socket.socket(fileno=0)\n"
        "REPORT = dict(width=9, height=9, format='PNG', sharpness=1, brightness=1, dhash='', faults=[], notes=[])\n"
        "PNG = bytes.fromhex('89504e470d0a1a0a0000000d49484452000000400000004008020000')\n"
        "frames.send_frame(channel, {'held': []})\n"
        f"frames.receive_frame(channel, 10**8)\n{answer}\n"
        "frames.receive_frame(channel, 0)"
    )
    monkeypatch.setattr("training.data.decoding.decoder._START", program)
    with Decoder(wall_s=20) as decoder, pytest.raises(ImageInvalid, match="crashes the decoder"):
        decoder.prepare(b"x", resolution=64)


# ---- what it can do ----

TRIES = """
import json, os, signal, socket, sys, threading
sys.path.insert(0, sys.argv[1])
from training.data.decoding.confinement import confine
held = confine(100_000_000)
def of(what):
    try:
        what()
    except (OSError, MemoryError, RuntimeError) as error:
        return type(error).__name__
    return "done"
def call(family, kind, *address):
    with socket.socket(family, kind) as made:
        made.connect(*address) if kind == socket.SOCK_STREAM else made.sendto(b"x", *address)
tries = {
    "reads": lambda: open(sys.argv[2]).read(),
    "writes": lambda: open(sys.argv[3], "w").write("x"),
    "lists": lambda: os.listdir("/"),
    "removes": lambda: os.unlink(sys.argv[2]),
    "runs": lambda: os.execv("/bin/true", ["true"]),
    "calls": lambda: call(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", int(sys.argv[4]))),
    "tells": lambda: call(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", int(sys.argv[4]))),
    "signals": lambda: os.kill(int(sys.argv[5]), signal.SIGTERM),
    "takes": lambda: bytearray(500_000_000),
}
print(json.dumps({"held": held, **{name: of(what) for name, what in tries.items()}}))
"""


@linux
def test_it_reaches_no_file_no_network_and_no_process(tmp_path: Path) -> None:
    """The same confinement, around a program that tries."""
    secret = tmp_path / "secret"
    secret.write_text("for the worker only")
    with witness() as seen, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as heard:
        heard.bind(("127.0.0.1", seen.port))
        heard.setblocking(False)
        victim = subprocess.Popen(["sleep", "600"])
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", TRIES, str(ROOT), str(secret), str(tmp_path / "made"), str(seen.port),
                 str(victim.pid)],
                capture_output=True, text=True, timeout=60, env={"LC_ALL": "C.UTF-8"}, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            content = json.loads(done.stdout)
            # A kernel or container without Landlock or user namespaces says so; these are refused by any Linux.
            assert {"memory", "core", "file size", "open files", "no new rights"} <= set(content["held"])
            assert content["takes"] == "MemoryError"
            assert not (tmp_path / "made").exists() or (tmp_path / "made").stat().st_size == 0
            if "no files" in content["held"]:
                names = ("reads", "writes", "lists", "removes", "runs")
                assert [content[name] for name in names] == ["PermissionError"] * 5
                assert secret.read_text() == "for the worker only"
            if "no network" in content["held"]:
                assert [content["calls"] == "done", content["tells"] == "done"] == [False, False]
                assert seen.reached == 0
                with suppress(BlockingIOError):
                    raise AssertionError(heard.recv(10))
        finally:
            victim.kill()
            victim.wait()


@linux
def test_a_child_has_no_secret_and_nothing_open(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPRINT_S3_SECRET_ACCESS_KEY", "planted-for-nobody")
    with (ROOT / "README.md").open() as inherited:
        os.set_inheritable(inherited.fileno(), True)
        decoder.prepare(picture("PNG"), resolution=64)
    (child,) = decoder._idle
    assert {"memory", "no files", "no new rights"} & set(child.held) >= {"memory", "no new rights"}
    place = Path(f"/proc/{child_of(decoder)}")
    assert b"planted" not in (place / "environ").read_bytes() + (place / "cmdline").read_bytes()
    held = {str(link.readlink()).split(":")[0] for link in (place / "fd").iterdir()}
    assert held == {"socket", "/dev/null"}
    assert len(list((place / "task").iterdir())) == 1


# ---- its life ----


def test_threads_have_a_child_each(decoder: Decoder) -> None:
    data = [picture("JPEG", size=(100 + number, 80)) for number in range(12)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda one: decoder.prepare(one, resolution=64), data))
    assert [one.report.width for one in made] == list(range(100, 112))
    assert 1 <= len(decoder._idle) <= 4


def test_a_child_is_replaced_after_so_many() -> None:
    others = children()  # of other tests in this process
    with Decoder(pictures=2) as decoder:
        data, seen = picture("PNG"), []
        for _ in range(3):
            decoder.prepare(data, resolution=64)
            seen.append(children() - others)
    assert [len(found) for found in seen] == [1, 0, 1]
    assert seen[0] != seen[2]


def test_a_fork_has_its_own(decoder: Decoder) -> None:
    """A prefork worker's children do not speak over each other's channels."""
    data = picture("PNG")
    wanted = decoder.prepare(data, resolution=64)
    ours = child_of(decoder)
    pid = os.fork()
    if pid == 0:
        same = decoder.prepare(data, resolution=64) == wanted and child_of(decoder) != ours
        decoder.close()
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert decoder.prepare(data, resolution=64) == wanted
    assert child_of(decoder) == ours


@linux
def test_it_ends_with_its_worker(tmp_path: Path) -> None:
    """However that ends: here by kill -9."""
    image, program = tmp_path / "a.png", (
        "import sys, time; from pathlib import Path\n"
        "from training.data.decoding.decoder import Decoder\nmade = Decoder()\n"
        "made.prepare(Path(sys.argv[1]).read_bytes(), resolution=64)\n"
        "print(made._idle[0]._process.pid, flush=True); time.sleep(600)"
    )  # fmt: skip
    image.write_bytes(picture("PNG"))
    with subprocess.Popen([sys.executable, "-c", program, image], cwd=ROOT, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        pid = int(worker.stdout.readline())
        assert not gone(pid)
        worker.kill()
    until(lambda: gone(pid), 60, "the decoder is gone")


# ---- in a job ----


def test_in_a_job_it_is_one_bad_picture(tmp_path: Path, slow: bytes) -> None:
    """The step of the pipeline, over a decoder with little time: the job goes on with the others."""
    services = Services(Settings(_env_file=None, home=tmp_path))
    services.__dict__["decoder"] = Decoder(cpu_s=0.3)
    try:
        accounts.grant(services, "ada", 1000, key="welcome")
        files = [slow, *(picture("PNG", size=(200 + number, 200)) for number in range(4))]
        images: list[Any] = [intake.store_picture(services, "ada", "dog", file) for file in files]
        images[2] = {"ref": images[2], "mask": images[0]}
        request = {**REQUEST, "images": images, "resolution": 64, "objective": {"masked": True}}
        job_id: str = service.submit(services, request).job_id
        for position in range(3):
            preprocessing.preprocess(services, job_id, position)
        with services.database.reading() as session:
            rows = [session.get_one(JobPicture, (job_id, position)) for position in range(3)]
        assert [row.state for row in rows] == [PictureState.BAD, PictureState.GOOD, PictureState.BAD]
        report = rows[0].report or StoredReport()
        assert (report.code, report.bad) == ("image_invalid", ["unreadable"])
        assert report.error == "decoding the picture takes more than 0.3 s of CPU time"
        of_mask = rows[2].report or StoredReport()
        assert (of_mask.code, of_mask.bad) == ("image_invalid", ["unusable_mask"])
        assert of_mask.error == f"its mask cannot be used: {report.error}"
    finally:
        services.decoder.close()
        services.database.close()
