"""A folder that several processes may want to make at once."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch


def make_once(out: Path, done: str, seed: int, write: Callable[[Path], None]) -> Path:
    """Create the folder `out` with what `write` puts into it, atomically, unless it exists; returns `out`.

    done: the file that a whole folder has. seed: of the random weights that `write` makes.
    """
    if (out / done).is_file():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        # Models take random weights from torch's global generator: fork it to leave the caller's unchanged.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            write(temporary)
        # safetensors makes files readable only for their owner, but workers may run as another user.
        for path in [temporary, *temporary.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        try:
            temporary.rename(out)
        except OSError:
            if not (out / done).is_file():  # else another process has created the same one
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out
