"""Where figures go: one JSON line each, on the screen and in `$OUT/results.jsonl`, as soon as it is known."""

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
    """Write one line. It is on disk when this returns, so that a killed process loses nothing that it measured."""
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
    """An error in here becomes a line, and what comes next goes on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is, the other measurements are worth having
        message = f"{type(error).__name__}: {str(error)[:600]}"
        figure(part, **about, error=message, where=traceback.format_exc()[-900:])
