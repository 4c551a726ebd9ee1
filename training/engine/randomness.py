"""All random numbers of a training, as pure functions of (seed, step): without generator state, a resume is exact."""

import hashlib
from collections.abc import Sequence
from math import ceil

import torch

from training.ports import Example


def generator(seed: int, purpose: str, number: int) -> torch.Generator:
    """A CPU generator for one purpose and number, such as ("step", k), ("order", epoch) or ("start", layer)."""
    digest = hashlib.sha256(f"imprint/1/{seed}/{purpose}/{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class SampleOrder:
    """The pictures of each step: in every epoch a seeded permutation of batches, each with pictures of one size.

    If the pictures of a size do not fill its last batch, its first ones are repeated. So every batch is full: there is
    one shape per size, and every sample has the same weight.
    """

    def __init__(self, examples: Sequence[Example], batch_size: int, seed: int) -> None:
        self.seed, self.batch_size = seed, batch_size
        sizes: dict[tuple[int, int], list[int]] = {}
        for place, example in enumerate(examples):
            sizes.setdefault((example.width, example.height), []).append(place)
        self._groups = [sizes[size] for size in sorted(sizes)]
        self.steps_per_epoch = sum(ceil(len(group) / batch_size) for group in self._groups)
        self._epoch, self._batches = -1, list[list[int]]()

    def batch(self, step: int) -> list[int]:
        """The indices of the examples of `step`, from 0: `batch_size` of them, all of one size."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches[place]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        chance = generator(self.seed, "order", epoch)
        batches: list[list[int]] = []
        for group in self._groups:
            mixed = [group[i] for i in torch.randperm(len(group), generator=chance).tolist()]
            count = ceil(len(mixed) / self.batch_size)
            full = [mixed[i % len(mixed)] for i in range(count * self.batch_size)]
            batches += [full[i : i + self.batch_size] for i in range(0, len(full), self.batch_size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=chance).tolist()]
