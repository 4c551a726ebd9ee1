"""AdamW whose moments are kept in 8 bits: https://arxiv.org/abs/2110.02861.

A vector is divided into blocks of 256. A block is stored as its largest magnitude, and for each number the nearest of
256 codes between -1 and 1 (0 and 1 for second moments, which are not negative). The codes are dense near zero, where
most moments are: the "dynamic tree" of section 1.3, as in bitsandbytes' create_dynamic_map.
"""

import torch
from torch import Tensor
from torch.nn import functional

from training.engine.layout import Layout
from training.engine.optimizers.stack import AdamW

BLOCK = 256
_EXPONENTS = 7


def codes(*, signed: bool) -> Tensor:
    """The values of the 256 codes, as fractions of a block's largest magnitude, ascending, float32."""
    made = [0.0, 1.0]
    for exponent in range(_EXPONENTS):
        count = 2 ** (exponent if signed else exponent + 1)
        edges = torch.linspace(0.1, 1, count + 1)
        means = ((edges[:-1] + edges[1:]) / 2).tolist()
        unit = 10.0 ** (exponent - _EXPONENTS + 1)
        made += [unit * mean for mean in means] + ([-unit * mean for mean in means] if signed else [])
    return torch.tensor(sorted(made + [0.0] * (256 - len(made))))


class AdamW8bit(AdamW):
    """AdamW with moments in 8 bits. Masters and updates are in float32."""

    VECTORS = ()
    RAW = ("first_codes", "first_largest", "second_codes", "second_largest")

    def __init__(self, slots: int, layout: Layout, device: torch.device) -> None:
        super(AdamW, self).__init__(slots, layout, device)
        blocks = -(-layout.size // BLOCK)
        shape = (slots, blocks, BLOCK)
        self.first_codes = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.second_codes = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.first_largest = torch.zeros(slots, blocks, 1, device=device)
        self.second_largest = torch.zeros(slots, blocks, 1, device=device)
        self._signed, self._unsigned = codes(signed=True).to(device), codes(signed=False).to(device)

    def _update(self, gradient: Tensor) -> None:
        size = self.layout.size
        first = self._unpacked(self.first_codes, self.first_largest, self._signed)[:, :size]
        second = self._unpacked(self.second_codes, self.second_largest, self._unsigned)[:, :size]
        self._move(gradient, first, second)
        self._pack(first, self.first_codes, self.first_largest, self._signed)
        self._pack(second, self.second_codes, self.second_largest, self._unsigned)

    @staticmethod
    def _unpacked(held: Tensor, largest: Tensor, table: Tensor) -> Tensor:
        return (table[held.int()] * largest).flatten(1)

    @staticmethod
    def _pack(values: Tensor, held: Tensor, largest: Tensor, table: Tensor) -> None:
        """Store values [N, P] as codes [N, blocks, 256] and the largest magnitude of each block, [N, blocks, 1]."""
        blocks = functional.pad(values, (0, held[0].numel() - values.shape[1])).view(held.shape)
        torch.amax(blocks.abs(), 2, keepdim=True, out=largest)
        shares = blocks / largest.clamp(min=torch.finfo(torch.float32).tiny)
        held.copy_(torch.bucketize(shares, (table[1:] + table[:-1]) / 2))
