"""`python -m training` in which the second of several processes runs out of memory once, in an evaluation."""

import os
import sys

import torch

from training.__main__ import main
from training.engine.evaluation.evaluations import Evaluation

_UNIT = 4  # in the middle of the first validation
_advance = Evaluation.advance
_units = 0


def _starved(evaluation: Evaluation) -> bool:
    global _units
    _units += 1
    if _units == _UNIT and os.environ["RANK"] == "1":
        raise torch.OutOfMemoryError("CUDA out of memory")
    return _advance(evaluation)


Evaluation.advance = _starved  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main())
