"""Decoding of untrusted pictures in child processes: a file that crashes, hangs or exhausts one costs one picture.

Decoders are C code, and files may be made to exploit them. So they run in a child without files, network or the
worker's memory (`confinement`), and the child's response is validated. docs/benchmarks.md has the cost.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.errors import ImageInvalid, MaskInvalid, WorkerLost
from core.fairness.fair_turns import FairTurns
from training.data.decoding import decoder_protocol
from training.data.masks import with_mask
from training.data.pictures import FORMATS, PreparedImage, buckets
from training.data.quality import Fault, PictureReport

# Preparing took at most 21 bytes per pixel (lossless WebP with transparency), plus the file and a fixed amount for the
# codecs.
_BYTES_PER_PIXEL = 24
_MEMORY_BESIDE = 256 * 2**20

_START_TIMEOUT_S = 120.0  # on a busy machine
_START = (
    "import json, sys; given = json.loads(sys.argv[1]); sys.path[:] = given.pop('path'); "
    "from training.data.decoding.decoder_child import main; main(**given)"
)
# No settings and no secrets of the worker; libraries must not start threads.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}

_WANTED = {"memory", "no files", "no network"}

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_Note = Annotated[str, Field(max_length=200)]

log = logging.getLogger(__name__)


class _Report(BaseModel):
    """Validates a report: it comes from a process that a picture may have taken over."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    width: int = Field(ge=1)
    height: int = Field(ge=1)
    format: str = Field(max_length=10)
    sharpness: float
    brightness: float
    dhash: str = Field(pattern=r"^[0-9a-f]{0,256}$")
    colours: str = Field(pattern=r"^[0-9a-f]{0,96}$")
    faults: tuple[Fault, ...] = Field(max_length=10)
    notes: tuple[_Note, ...] = Field(max_length=10)


class Decoder:
    """Runs `training.data.pictures.prepare` in child processes, at most `at_once`. Safe to use from several threads.

    `cpu_s` and `wall_s` limit the CPU time and the wall time of one picture. `memory_bytes` limits the memory of a
    child; by default it is what a picture of `max_pixels` needs. `at_once` is one per core by default. A child is
    replaced after `pictures` pictures, because codecs leak. Children end with this process, and with `close`.
    """

    def __init__(
        self,
        *,
        max_pixels: int = 50_000_000,
        max_bytes: int = 20_000_000,
        cpu_s: float = 30.0,
        wall_s: float = 120.0,
        memory_bytes: int | None = None,
        pictures: int = 1000,
        at_once: int | None = None,
    ) -> None:
        self._limits = {
            "max_pixels": max_pixels,
            "max_bytes": max_bytes,
            "memory_bytes": memory_bytes or max_pixels * _BYTES_PER_PIXEL + 4 * max_bytes + _MEMORY_BESIDE,
            "cpu_s": cpu_s,
            "wall_s": wall_s,
        }
        self._max_bytes, self._cpu_s, self._wall_s, self._pictures = max_bytes, cpu_s, wall_s, pictures
        self._idle: list[_Child] = []
        self._lock = threading.Lock()
        self._turns = FairTurns(at_once or os.cpu_count() or 1)

    def prepare(
        self,
        data: bytes,
        *,
        resolution: int,
        aspect_buckets: bool = False,
        masked: bool = False,
        mask: bytes | None = None,
        crop: Sequence[float] | None = None,
        whole: bool = False,
        known: PictureReport | None = None,
        owner_id: str = "",
    ) -> PreparedImage:
        """Like `training.data.pictures.prepare`; with `masked`, the file `mask` replaces the alpha channel.

        Raises ImageInvalid, also if the picture crashes, hangs or exhausts its decoder; MaskInvalid if the mask does,
        or has another shape; WorkerLost if a decoder cannot be started. Owners take turns if more pictures wait.
        """
        asked: dict[str, Any] = {
            "resolution": resolution,
            "aspect_buckets": aspect_buckets,
            "masked": masked and mask is None,
        }
        asked |= {"crop": list(crop)} if crop else {}
        asked |= {"whole": True} if whole else {}
        of_picture = {"known": asdict(known)} if known else {}
        with self._turns.hold(owner_id):
            made = self._decoded(asked | of_picture, data)
            if not masked or mask is None:
                return made
            try:
                shown = self._decoded(asked, mask)
            except ImageInvalid as error:
                raise MaskInvalid(f"its mask cannot be used: {error.message}") from error
        return with_mask(made, shown)

    def report(self, data: bytes, *, resolution: int, aspect_buckets: bool = False) -> PictureReport:
        """The report of `prepare` without the picture. Raises as `prepare`."""
        asked = {"resolution": resolution, "aspect_buckets": aspect_buckets, "masked": False, "report_only": True}
        with self._turns.hold(""):
            return self._decoded(asked, data).report

    def _decoded(self, asked: dict[str, Any], data: bytes) -> PreparedImage:
        """Decode one file in a child. Raises ImageInvalid and WorkerLost."""
        if len(data) > self._max_bytes:
            raise ImageInvalid(f"the file has {len(data)} bytes; at most {self._max_bytes} are accepted")
        # Something else may have killed the child. If it fails twice in a row, the picture is the cause.
        with suppress(decoder_protocol.ProtocolError):
            return self._try(asked, data)
        with suppress(decoder_protocol.ProtocolError):
            return self._try(asked, data)
        raise ImageInvalid("the picture crashes the decoder: the file is damaged, or made to do so")

    def _try(self, asked: dict[str, Any], data: bytes) -> PreparedImage:
        """One attempt. Raises ProtocolError if the child died for an unknown reason or sent an invalid response."""
        child = self._acquire()
        kept = False
        try:
            answer, png = child.ask(asked, data, time.monotonic() + self._wall_s)
            if error := answer.get("error"):
                kept = True
                raise ImageInvalid(str(error)[:200] if str(error).isprintable() else "the picture is damaged")
            if "memory" in answer:
                raise ImageInvalid("decoding the picture takes more memory than its size allows")
            made = _checked(answer, bytes(png), asked)
            kept = True
            return made
        except TimeoutError:
            child.end(0)
            raise ImageInvalid(f"decoding the picture takes longer than {self._wall_s:g} s") from None
        except decoder_protocol.ProtocolError:
            if child.end() in (-signal.SIGPROF, -signal.SIGALRM):
                raise ImageInvalid(f"decoding the picture takes more than {self._cpu_s:g} s of CPU time") from None
            raise
        finally:
            if kept:
                self._release(child)
            else:
                child.end()

    def _acquire(self) -> "_Child":
        """An idle child, or a new one. Raises WorkerLost."""
        while True:
            with self._lock:
                child = self._idle.pop() if self._idle else None
            if child is None:
                return _Child(self._limits)
            if child.usable:
                return child
            child.end()

    def _release(self, child: "_Child") -> None:
        if child.answered >= self._pictures:
            child.end()
            return
        with self._lock:
            self._idle.append(child)

    def close(self) -> None:
        """End the children. A later `prepare` starts new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            child.end()

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Child:
    """A running decoder, confined and ready. Raises WorkerLost if it does not start."""

    def __init__(self, limits: dict[str, Any]) -> None:
        self.answered = 0
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel, theirs = socket.socketpair()
        given = {"path": [str(Path(place).absolute()) for place in sys.path], **limits}
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-c", _START, json.dumps(given)],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    cwd="/",
                    env=_ENVIRONMENT,
                    start_new_session=True,  # signals to the worker's process group are not for the child
                )
            ready, _ = decoder_protocol.receive_frame(self._channel, 0, time.monotonic() + _START_TIMEOUT_S)
        except OSError as error:  # TimeoutError is one
            self.end(0)
            raise WorkerLost(f"the picture decoder does not start ({type(error).__name__})") from error
        except decoder_protocol.ProtocolError as error:
            raise WorkerLost(f"the picture decoder ended at its start with status {self.end()}") from error
        self.held: list[str] = ready["held"]
        _warn_without(frozenset(_WANTED.difference(self.held)))

    @property
    def usable(self) -> bool:
        """Whether the child is alive and was started by this process, not by one that forked it."""
        return self._owner == os.getpid() and self._process is not None and self._process.poll() is None

    def ask(self, asked: dict[str, Any], data: bytes, deadline: float) -> tuple[dict[str, Any], bytearray]:
        """Send a request; returns the response. Raises ProtocolError and TimeoutError."""
        largest = 8 * int(asked["resolution"]) ** 2 + 2**20  # RGBA of at most 1.25 times the area
        decoder_protocol.send_frame(self._channel, asked, data, deadline)
        answer = decoder_protocol.receive_frame(self._channel, largest, deadline)
        self.answered += 1
        return answer

    def end(self, grace_s: float = 5.0) -> int | None:
        """Wait `grace_s` for the child to end, then kill it; returns its exit status. May be called twice."""
        self._channel.close()
        if self._process is None or self._owner != os.getpid():
            return None
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(grace_s)
        self._process.kill()
        return self._process.wait()


@cache
def _warn_without(missing: frozenset[str]) -> None:
    """Warn about missing limits, once per process."""
    if missing:
        log.warning(
            "this machine cannot apply all limits to the picture decoder; missing: %s", ", ".join(sorted(missing))
        )


def _checked(answer: dict[str, Any], png: bytes, asked: dict[str, Any]) -> PreparedImage:
    """The response as a PreparedImage, if `prepare` could have returned it. Raises ProtocolError."""
    resolution, width, height = asked["resolution"], answer.get("width"), answer.get("height")
    sizes = buckets(resolution) if asked["aspect_buckets"] else ((resolution, resolution),)
    try:
        report = _Report.model_validate(answer.get("report"))
    except ValidationError as error:
        raise decoder_protocol.ProtocolError("the report is invalid") from error
    if not isinstance(width, int) or not isinstance(height, int):
        raise decoder_protocol.ProtocolError("the picture has no size")
    is_asked = (
        1 <= min(width, height) <= max(width, height) <= resolution if "whole" in asked else (width, height) in sizes
    )
    if not is_asked:
        raise decoder_protocol.ProtocolError("the picture has another size")
    if report.format not in FORMATS:
        raise decoder_protocol.ProtocolError("the format is not one that is accepted")
    if "report_only" in asked and png:
        raise decoder_protocol.ProtocolError("there is a picture, but only a report was requested")
    size = _PNG_SIGNATURE + width.to_bytes(4, "big") + height.to_bytes(4, "big")
    colours = (2, 6) if asked["masked"] else (2,)  # RGB, RGBA
    headers = tuple(size + bytes((8, colour, 0, 0, 0)) for colour in colours)
    if "report_only" not in asked and not png.startswith(headers):
        raise decoder_protocol.ProtocolError("the picture is not a PNG as requested")
    return PreparedImage(png, width, height, sha256(png).hexdigest(), PictureReport(**report.model_dump()))
