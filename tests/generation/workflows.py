"""Five workflows from simple to tangled, and the files that they name. Written for these tests, as ComfyUI exports."""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in (HERE / "workflows").glob("*.json"))


def workflow(name: str) -> dict[str, Any]:
    return read("workflows", name)


def golden(name: str) -> dict[str, Any]:
    """The same, patched with `LORA` of test_patch."""
    return read("golden", name)


def read(folder: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / folder / f"{name}.json").read_text())
    return found
