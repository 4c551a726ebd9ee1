"""A frozen base in 8 or 4 bits."""

import re
from typing import Any

from torch import nn

# The linears of the repeated blocks, where nearly all weights are. Embedders, modulation at the ends, norms and
# convolutions stay as they are.
_BLOCKS = re.compile(r"(.*\.)?(transformer_blocks|layers|noise_refiner|context_refiner)\.\d+\..+")


def fits(name: str, module: Any) -> bool:
    """Whether a denoiser's layer of that name is quantised."""
    return isinstance(module, nn.Linear) and _BLOCKS.fullmatch(name) is not None
