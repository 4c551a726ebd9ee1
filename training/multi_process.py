"""`accelerate launch -m training …`: one training over several processes. Only the first process writes files."""

import contextlib
import os
import signal
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from training.checkpoint_folder import FolderCheckpoints, Options


class ReadOnlyCheckpoints(FolderCheckpoints):
    """The first process's checkpoints for another process: read at once, before any is written or deleted."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._read = {step: super(ReadOnlyCheckpoints, self).load(step) for step in list(super().steps())[-2:]}

    def steps(self) -> Sequence[int]:
        return sorted(self._read)

    def load(self, step: int) -> bytes:
        return self._read[step]

    def save(self, step: int, data: bytes) -> None:
        """Only the first process does this."""

    def drop(self, step: int) -> None:
        """Only the first process does this."""

    def claim(self, options: Options) -> list[str]:
        """Only the first process does this."""
        return []

    def remove(self) -> None:
        """Only the first process does this."""


@contextlib.contextmanager
def shared_checkpoints(given: Namespace, batch_size: int, console: Console) -> Iterator[FolderCheckpoints]:
    """The checkpoints of this training. If a launcher started several processes, this connects them first.

    Only the first process prints and writes files. Raises SpecInvalid if the batch cannot be divided.
    """
    folder = given.resume_dir or given.out.with_name(f"{given.out.name}.checkpoints")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield FolderCheckpoints(folder)
        return
    from training.engine import distributed  # torch takes seconds to import

    with distributed.sharing(given.device, batch_size) as given.device, contextlib.ExitStack() as stack:
        # The terminal sends Ctrl-C to all processes, and the launcher passes it on again: ignore the second.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if distributed.rank() == 0:
            distributed.wait_for_all()
            yield FolderCheckpoints(folder)
            return
        lent = ReadOnlyCheckpoints(folder)
        distributed.wait_for_all()
        console.quiet = True
        given.out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="imprint-"))) / given.out.name
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        yield lent
