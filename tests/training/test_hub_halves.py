"""A repository on the model hub that has its weights only in 16 bits is downloaded and trained on."""

import fnmatch
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.families.registry import FAMILIES
from training.families.weights import folders


@pytest.mark.parametrize("sharded", [False, True])
def test_weights_in_16_bits_only(
    sharded: bool, bases: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, cache, end = tmp_path / "hub", tmp_path / "cache", "-00001-of-00001" if sharded else ""
    shutil.copytree(bases(), hub)
    for path in hub.rglob("*.safetensors"):
        path.rename(path.with_name(f"{path.stem}.fp16{end}.safetensors"))
    cache.mkdir()

    def download(_name: str, *, allow_patterns: list[str], local_files_only: bool = False, **_: Any) -> str:
        """As the hub's own: files that a pattern matches."""
        for path in hub.rglob("*"):
            name = str(path.relative_to(hub))
            if not local_files_only and path.is_file() and any(fnmatch.fnmatch(name, one) for one in allow_patterns):
                (cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, cache / name)
        return str(cache)

    monkeypatch.setattr(folders, "snapshot_download", download)
    parts = FAMILIES["sd15"].parts
    assert folders.cached("owner/halves", parts) is None
    assert folders.from_hub("owner/halves", parts) == cache
    assert folders.variant(cache, "unet") == "fp16"
    assert folders.cached("owner/halves", parts) == cache
