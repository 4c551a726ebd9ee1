"""Pictures and captions are encoded once for all jobs; what is on disk gives the same file as what was just made."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.families import LOCAL
from training import families
from training.backends.encoded_files import delete_unused
from training.backends.encodings import Encodings
from training.backends.local import train
from training.families.family import Where
from training.ports import TrainRun

Runs = Callable[..., TrainRun]


@pytest.mark.parametrize("family", LOCAL)
def test_what_comes_back_is_what_was_made(runs: Runs, tmp_path: Path, family: str) -> None:
    dtype = torch.float32 if family == "sd15" else torch.bfloat16
    run, found = runs(family, wide=2), families.find(family)
    base = found.load(Where(Path(run.base_model), torch.device("cpu"), dtype))
    fresh, warm = Encodings(tmp_path / "kept", "a"), Encodings(tmp_path / "kept", "a")
    given = found, base, run.examples
    wanted = fresh.conditions(*given), fresh.moments(*given, lambda: None)
    got = warm.conditions(*given), warm.moments(*given, lambda: None)
    assert (fresh.found, warm.made) == (0, 0)
    for one, other in zip(wanted[0], got[0], strict=True):
        assert all(torch.equal(one[name], other[name]) and one[name].dtype is other[name].dtype for name in one)
    assert all(torch.equal(one, other) for one, other in zip(wanted[1], got[1], strict=True))
    # Another base model shares nothing.
    other_base = Encodings(tmp_path / "kept", "b")
    other_base.conditions(*given)
    assert other_base.found == 0


def test_damaged_files_are_made_again_and_old_ones_go(runs: Runs, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    first = train(replace(runs(name="first"), encodings=kept))
    files = sorted(kept.glob("*/*.safetensors"))
    assert len(files) == 5 + 2  # pictures, and two captions among them
    for number, path in enumerate(files):
        path.write_bytes(path.read_bytes()[: 100 * number])
    assert train(replace(runs(name="second"), encodings=kept)).sha256 == first.sha256
    assert train(replace(runs(name="third"), encodings=kept)).sha256 == first.sha256
    # Each file names the picture that it was made of, and goes with it.
    shas = [example.sha256 for example in runs(name="fourth").examples]
    assert delete_unused(kept, lambda asked: set(asked) & set(shas)) == 0
    assert delete_unused(kept, lambda asked: set(asked) & set(shas[1:])) >= 1
    assert len(list(kept.glob("*/*.safetensors"))) >= 5
    next(kept.glob("*/*.safetensors")).write_bytes(b"of an earlier version")
    assert delete_unused(kept, lambda asked: asked) == 1
    assert delete_unused(kept, lambda _: ()) > 0
    assert list(kept.glob("*/*.safetensors")) == []
    small = Encodings(kept, "c", max_bytes=0)
    small._save("picture", "x", {"moments": torch.zeros(3)})
    assert list(kept.glob("*/*.safetensors")) == []
