"""The quality of pictures for training: faults by simple measures, and near-duplicates.

The thresholds were chosen on 34 photographs of six subjects and 40 flat drawings (mascots in random poses, line
drawings), each also blurred, re-encoded, resized and brightened. The comment at each threshold has the results.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.framing import MAX_ENLARGEMENT

Fault = Literal["too_small", "blurred", "noise", "over_exposed", "under_exposed", "near_duplicate", "unreadable"]
FAULTS: tuple[str, ...] = get_args(Fault)

# Pictures with any of these are left out: the thresholds catch only clear cases.
BAD_FAULTS: frozenset[str] = frozenset(FAULTS)

# Sharpness (see `_sharpness`) of sharp photographs: 0.5 to 9; of drawings: 0.75 to 57, even at a fifth of the
# contrast. With a Gaussian blur of 0.6 % of the side (3 px at 512): 0.01 to 0.13; of 0.8 %: below 0.07.
_BLURRED = 0.12

# Correlation of neighbouring pixels (see `_correlation`). Photographs: 0.8 or more; drawings: 0.13 (scattered dots) or
# more, a chequerboard -1. Noise of 64 to 2,000 pixels: within 0.015 of 0.
_NOISE = 0.05

# Over-exposed: fewer than one pixel in a hundred is darker than this. Drawings on white have darker lines.
WHITE = 235
# Under-exposed: fewer than one pixel in a hundred is brighter than this. Night scenes have lights.
_BLACK = 30

# Near-duplicates, by the share of set hash bits that differ. Different pictures, even two photographs of the same
# clock on the same table: 0.49 or more; a drawing with only its arms moved: 0.12 or more; a JPEG copy of quality
# 30, or of half the size: 0.07 or less.
_SAME = 0.10
# Brightening clips the lightest tones: edges vanish (up to 0.25 of the bits), but none appear.
_SAME_ONE_SIDED, _NEW_EDGES = 0.30, 0.02

# Near-duplicates in another colour, by how far the colours of 16 parts move, as a share of how strong they are. JPEG
# copies, and pictures brightened, darkened or saturated by 30 %: 0.44 or less; hues turned by 60 degrees: 1.08. JPEG
# copies of nearly grey pictures move by up to 3 levels.
_OTHER_COLOURS, _COLOUR_NOISE = 0.6, 4.0
# The same for a single part, which brightening clips more.
_OTHER_COLOURS_OF_A_PART, _COLOUR_NOISE_OF_A_PART = 0.8, 15.0

_HASH_SIDE = 16
_HASH_DIGITS = _HASH_SIDE * _HASH_SIDE * 2 // 4
# Grey levels between neighbours that count as an edge; without it, noise of a flat background fills half the hash.
_EDGE = 3


@dataclass(frozen=True)
class PictureReport:
    """The quality of one picture. `faults` are from FAULTS; `notes` are remarks that are not faults."""

    width: int  # of the original, after EXIF orientation
    height: int
    format: str  # JPEG, PNG, WEBP or AVIF; empty if it could not be decoded
    sharpness: float  # variance of the Laplacian over the variance, in the sharpest part; 0: flat
    brightness: float  # mean grey level, 0 to 255
    dhash: str  # 128 hex digits; empty if it could not be decoded
    faults: tuple[str, ...]
    notes: tuple[str, ...] = ()
    colours: str = ""  # 16 mean colours of the prepared picture, RGB, 96 hex digits; empty in older reports

    @property
    def bad(self) -> list[str]:
        """The faults for which the picture is left out."""
        return [fault for fault in self.faults if fault in BAD_FAULTS]

    def at(self, prepared: Image.Image, enlargement: float, notes: Iterable[str]) -> "PictureReport":
        """The report where `prepared` is trained, RGB or RGBA, enlarged so much: all else that was measured holds."""
        return replace(
            self,
            faults=tuple(faults_at(self.faults, enlargement)),
            notes=tuple(notes),
            colours=prepared.convert("RGB").resize((4, 4), Image.Resampling.BOX).tobytes().hex(),
        )


class Fingerprint(Protocol):
    """What tells near-duplicates; see PictureReport. Both are empty for a picture that could not be decoded."""

    @property
    def dhash(self) -> str: ...

    @property
    def colours(self) -> str: ...


def measure(grey: Image.Image, width: int, height: int, format_: str) -> PictureReport:
    """What of the report of a picture of `width` × `height` does not depend on its training; `at` has the rest.

    `grey` is the whole picture, shrunk to about 256 pixels.
    """
    levels = np.asarray(grey, dtype=np.float32)
    sharpness = _sharpness(levels)
    dark, light = np.percentile(levels, (1, 99))
    faults = [
        fault
        for fault, is_so in (
            ("blurred", sharpness < _BLURRED),
            ("noise", abs(_correlation(levels)) < _NOISE),
            ("over_exposed", dark >= WHITE),
            ("under_exposed", light <= _BLACK),
        )
        if is_so
    ]
    return PictureReport(
        width=width,
        height=height,
        format=format_,
        sharpness=round(sharpness, 4),
        brightness=round(float(levels.mean()), 2),
        dhash=_dhash(grey),
        faults=tuple(faults),
    )


def is_too_small(enlargement: float) -> bool:
    """Whether a picture that is enlarged so much is left out."""
    return round(enlargement, 3) >= MAX_ENLARGEMENT


def faults_at(faults: Iterable[str], enlargement: float) -> list[str]:
    """The faults of a measured picture where it is enlarged so much. All but `too_small` hold at every size."""
    measured = [fault for fault in faults if fault != "too_small"]
    return ["too_small", *measured] if is_too_small(enlargement) else measured


def _correlation(levels: NDArray[np.float32]) -> float:
    """Correlation of neighbouring pixels at half the size: near 1 in any picture of something, 0 in noise."""
    rows, columns = (side // 2 * 2 for side in levels.shape)
    if min(rows, columns) < 4 or levels.std() < 1:
        return 1.0
    half = levels[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2).mean(axis=(1, 3))
    half -= half.mean()
    across, down = (half[:, 1:] * half[:, :-1]).mean(), (half[1:] * half[:-1]).mean()
    return float((across + down) / 2 / max(half.var(), 1e-6))


def _sharpness(levels: NDArray[np.float32]) -> float:
    """Variance of the Laplacian in the sharpest of 8 × 8 tiles, over the variance of the whole picture.

    It uses the sharpest tile, because a subject in focus before a soft background is sharp, and so is a drawing that is
    mostly one colour. It divides by the variance, because low contrast is not blur. The variance of the Laplacian:
    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", 2000.
    """
    if min(levels.shape) < 3:
        return 0.0
    centre = levels[1:-1, 1:-1]
    laplacian = levels[1:-1, :-2] + levels[1:-1, 2:] + levels[:-2, 1:-1] + levels[2:, 1:-1] - 4 * centre
    rows = np.array_split(laplacian, 8)
    tiles = [tile for row in rows for tile in np.array_split(row, 8, axis=1) if tile.size]
    sharpest = max(float(tile.var()) for tile in tiles)
    # Assume a deviation of at least 5 levels: below that noise would count as detail.
    return sharpest / max(float(levels.var()), 25.0)


def _dhash(grey: Image.Image) -> str:
    """Difference hash, 512 bits as hex: where the picture gets lighter to the right (256) and downwards (256)."""
    side = _HASH_SIDE
    across, down = (
        np.asarray(grey.resize(size, Image.Resampling.LANCZOS), dtype=np.int16)
        for size in ((side + 1, side), (side, side + 1))
    )
    bits = np.concatenate([np.diff(across, axis=1).ravel() > _EDGE, np.diff(down, axis=0).ravel() > _EDGE])
    return np.packbits(bits).tobytes().hex()


class Repeats:
    """Finds pictures that repeat an earlier one. A variant in another colour is no repeat.

    Pictures that could not be decoded, and those that `is_used` says no of, neither repeat nor are repeated. Only as
    many pictures are compared as the questions need.
    """

    def __init__(self, reports: Sequence[Fingerprint], is_used: Callable[[int], bool] = lambda _: True) -> None:
        self._reports, self._is_used = reports, is_used
        self._hashed = [index for index, report in enumerate(reports) if report.dhash]  # by place
        self._places = {index: place for place, index in enumerate(self._hashed)}
        hashes = bytes.fromhex(
            "".join(reports[index].dhash[:_HASH_DIGITS].ljust(_HASH_DIGITS, "0") for index in self._hashed)
        )
        self._bits = np.frombuffer(hashes, np.uint8).reshape(-1, _HASH_DIGITS // 2)
        self._firsts: dict[int, int | None] = {}

    def first_of(self, index: int) -> int | None:
        """The index of the picture that this one repeats; None if it repeats none, or is not used."""
        place = self._places.get(index)
        if place is None or not self._is_used(index):
            return None
        alike: dict[int, list[int]] = {}
        asked = [place]
        while asked:
            if (one := asked.pop()) not in alike and one not in self._firsts:
                asked += alike.setdefault(one, self._alike(one))
        for one in sorted(alike):
            self._firsts[one] = next((other for other in alike[one] if self._firsts[other] is None), None)
        first = self._firsts[place]
        return None if first is None else self._hashed[first]

    def _alike(self, place: int) -> list[int]:
        """The earlier places with nearly the same picture."""
        found = np.flatnonzero(_are_same(self._bits[place], self._bits[:place])) if place else ()
        used = [int(other) for other in found if self._is_used(self._hashed[other])]
        chroma = self._chroma(place) if used else None
        return [other for other in used if chroma is None or not _is_recoloured(chroma, self._chroma(other))]

    def _chroma(self, place: int) -> NDArray[np.float32]:
        return _chroma(self._reports[self._hashed[place]].colours)


def near_duplicates(reports: Sequence[Fingerprint]) -> dict[int, int]:
    """Maps the index of each picture that repeats an earlier one to the index of the first; see `Repeats`."""
    repeats = Repeats(reports)
    found = ((index, repeats.first_of(index)) for index in range(len(reports)))
    return {index: first for index, first in found if first is not None}


def _are_same(one: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether a hash, [bytes], is nearly the same as each of others, [n, bytes]: [n]."""
    only_one, only_other, either = (_count(part) for part in (one & ~others, others & ~one, one | others))
    differing = (only_one + only_other) / np.maximum(1, either)
    fewest = np.maximum(1, np.minimum(_count(one), _count(others)))
    is_one_sided = np.minimum(only_one, only_other) <= _NEW_EDGES * fewest
    same: NDArray[np.bool_] = (differing <= _SAME) | (is_one_sided & (differing <= _SAME_ONE_SIDED))
    return same


def _count(bits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How many bits are set in each row."""
    count: NDArray[np.int64] = np.bitwise_count(bits).sum(axis=-1, dtype=np.int64)
    return count


def _chroma(colours: str) -> NDArray[np.float32]:
    """Red minus green and blue minus yellow of each mean colour, [16, 2]; [0, 2] for a report without colours."""
    red, green, blue = np.frombuffer(bytes.fromhex(colours), np.uint8).reshape(-1, 3).T.astype(np.float32)
    return np.stack([red - green, blue - (red + green) / 2], axis=1)


def _is_recoloured(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    if len(a) == 0 or len(b) == 0:
        return False
    change = np.linalg.norm(a - b, axis=1)
    strength = np.maximum(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    in_all = change.sum() > _OTHER_COLOURS * strength.sum() and change.mean() > _COLOUR_NOISE
    in_a_part = (change > _OTHER_COLOURS_OF_A_PART * strength) & (change > _COLOUR_NOISE_OF_A_PART)
    return bool(in_all or in_a_part.any())
