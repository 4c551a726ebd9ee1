"""Tiny base models in diffusers' layout: real block types, small channels, random weights from a seed.

`python -m training.tiny.base OUT [--family NAME] [--seed 0]`

They cannot draw. Tests train on them: the real code on real modules, but a step takes milliseconds. The same seed gives
the same weights.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from training import families
from training.families.registry import trained_here
from training.tiny.folder import make_once

_DONE = "model_index.json"  # the last file that save_pretrained writes


def make(out: Path, family: str = "sd15", seed: int = 0, *, prediction: str = "epsilon") -> Path:
    """Create a tiny base model of `family` at `out`, atomically, unless it exists; returns `out`.

    prediction: epsilon or v_prediction, for sd15 and sdxl.
    """

    def write(folder: Path) -> None:
        families.find(family).tiny(prediction).save_pretrained(folder, safe_serialization=True)

    return make_once(Path(out), _DONE, seed, write)


def main(arguments: list[str] | None = None) -> int:
    """The command line: create a model and print its path."""
    parser = argparse.ArgumentParser(prog="python -m training.tiny.base", description="make a tiny base model")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--family", choices=sorted(trained_here()), default="sd15")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    given = parser.parse_args(arguments)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    was_there = (given.out / _DONE).is_file()
    made = make(given.out, given.family, given.seed)
    size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
    print(f"{made}: tiny {given.family}, {size / 1e6:.1f} MB{' (was there already)' if was_there else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
