"""The fake ComfyUI that ships with the code, as a process of a test's own."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.process import Server, ServerProcess, free_port

ROOT = Path(__file__).resolve().parents[2]


class FakeComfyUI(Server):
    """`options` are those of `imprint fake-comfyui`, as typed."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.options, self.port = folder / "files", options, free_port()
        self.log = folder / "comfyui.log"
        self._process: ServerProcess | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def loras(self) -> Path:
        return self.folder / "models" / "loras"

    def start(self) -> None:
        """On the same port and folder as before; its queue and history are gone, as a real one's are."""
        argv = [sys.executable, "-m", "fakes.comfyui", "--port", str(self.port), "--folder", str(self.folder)]
        size = self.log.stat().st_size if self.log.exists() else 0
        self._process = ServerProcess([*argv, *self.options], log=self.log, cwd=ROOT)
        self._process.wait_until(lambda: b"fake ComfyUI on" in self.log.read_bytes()[size:], 60)

    def _end(self, *, kill: bool) -> None:
        if self._process is not None:
            self._process.end(kill=kill)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.signal(number)


@contextmanager
def fake_comfyui(folder: Path, *options: str) -> Iterator[FakeComfyUI]:
    """A running server for a `with` block."""
    made = FakeComfyUI(folder, *options)
    made.start()
    try:
        yield made
    finally:
        made.kill()
