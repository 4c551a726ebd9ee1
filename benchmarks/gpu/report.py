"""Results: one JSON line each, printed and appended to `$OUT/results.jsonl` at once."""

import json
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_begun = time.monotonic()


def out_folder() -> Path:
    """The folder of results: `$OUT`."""
    return Path(os.environ.get("OUT", "gpukit-out"))


def figure(part: str, **figures: Any) -> None:
    """Write one line. It is on disk when this returns, so a killed process loses no results."""
    line = json.dumps({"part": part, "at_s": round(time.monotonic() - _begun, 1), **figures})
    print(line, flush=True)
    folder = out_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "results.jsonl").open("a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def guarded(part: str, **about: Any) -> Iterator[None]:
    """Report errors of the block as a line, and continue after it."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - any error: the other measurements continue
        message = f"{type(error).__name__}: {str(error)[:600]}"
        figure(part, **about, error=message, where=traceback.format_exc()[-900:])
