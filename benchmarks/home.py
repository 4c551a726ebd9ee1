"""A home of its own for a benchmark of the whole stack: no setting of the machine's reaches it."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def clear_settings() -> None:
    """Forget every IMPRINT_ variable of this process and of those that it starts."""
    for name in [name for name in os.environ if name.startswith("IMPRINT_")]:
        del os.environ[name]


def settle(folder: Path, **settings: str) -> None:
    """Settings of this process and the stack, with a tiny base model for sd15; before anything reads them."""
    base = folder / "base"
    subprocess.run([sys.executable, "-m", "training.tiny_base", str(base)], check=True, cwd=ROOT, capture_output=True)
    clear_settings()
    os.environ.update(
        IMPRINT_HOME=str(folder / "home"),
        IMPRINT_BASE_MODELS=json.dumps({"sd15": str(base)}),
        IMPRINT_LOG_LEVEL="WARNING",
        OMP_NUM_THREADS="1",
        OMP_WAIT_POLICY="PASSIVE",
        **settings,
    )
