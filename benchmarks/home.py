"""An isolated home folder for a benchmark of the whole stack, without the machine's settings."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def clear_settings() -> None:
    """Remove all IMPRINT_ variables from the environment."""
    for name in [name for name in os.environ if name.startswith("IMPRINT_")]:
        del os.environ[name]


def settle(folder: Path, **settings: str) -> None:
    """Set up this process and the stack with a tiny base model for sd15. Call it before the settings are read."""
    base = folder / "base"
    subprocess.run([sys.executable, "-m", "training.tiny.base", str(base)], check=True, cwd=ROOT, capture_output=True)
    clear_settings()
    os.environ.update(
        IMPRINT_HOME=str(folder / "home"),
        IMPRINT_BASE_MODELS=json.dumps({"sd15": str(base)}),
        IMPRINT_LOG_LEVEL="WARNING",
        OMP_NUM_THREADS="1",
        OMP_WAIT_POLICY="PASSIVE",
        **settings,
    )
