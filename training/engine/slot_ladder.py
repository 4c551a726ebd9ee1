"""How many slots of one step pay on a GPU: found while training, once for each base model, shape and device.

A cohort grows along 1, 2, 4, 8, 16, 32 slots as jobs come. The time of its steps tells what each size trains in a
second; where twice the slots give little more, the ladder ends, and who comes then waits for a slot: so jobs end
sooner. What was found is kept in a file beside the encodings, so that the next worker begins with it.
"""

import json
import logging
from collections.abc import Hashable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from training.lora.file import write_file

log = logging.getLogger(__name__)

FILE = "ladder.json"
WORTH = 1.1  # what twice the slots must train more, to be worth the longer steps
_SKIPPED = 5  # steps after a change of slots, which warm up or are recorded
_ENOUGH = 20  # steps that tell


class SlotLadder:
    """Of one base model on one device. Used by the engine's thread alone."""

    def __init__(self, base: str, device: torch.device) -> None:
        """base: its fingerprint."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self._of = f"{base} on {name}"
        self._device = device
        self._alone = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0  # bytes of the base itself
        self._rates: dict[str, dict[int, float]] = {}  # by shape and slots: slots trained per second
        self._seen: list[float] = []  # seconds of the latest steps
        self._at: tuple[str, int] = ("", 0)  # and their shape and slots
        self._read: set[Path] = set()

    def remember(self, folder: Path | None) -> None:
        """Take what was found before from `folder`; what cannot be read is found anew."""
        if folder is None or folder in self._read:
            return
        self._read.add(folder)
        for shape, rates in _load(folder).get(self._of, {}).items():
            self._rates.setdefault(shape, {}).update({int(slots): float(rate) for slots, rate in rates.items()})

    def pays(self, shape: Hashable, slots: int) -> bool:
        """Whether so many slots train enough more than half of them; what is not known yet is tried."""
        rates = self._rates.get(repr(shape), {})
        return not (slots in rates and slots // 2 in rates) or rates[slots] >= WORTH * rates[slots // 2]

    def fits(self, slots: int, now: int) -> bool:
        """Whether memory will do for `slots`, from what the `now` slots of the cohort took at most."""
        if self._device.type != "cuda":
            return True
        peak = torch.cuda.max_memory_allocated(self._device)
        free, _ = torch.cuda.mem_get_info(self._device)
        room = free + torch.cuda.memory_reserved(self._device) - peak
        return (peak - self._alone) / now * (slots - now) < room

    def note(self, shape: Hashable, slots: int, seconds: float, folder: Path | None) -> None:
        """One step of `slots` took so long. When enough have, the rate is kept."""
        at = (repr(shape), slots)
        if at != self._at:
            self._at, self._seen = at, []
        self._seen.append(seconds)
        if len(self._seen) != _SKIPPED + _ENOUGH or slots in self._rates.get(at[0], {}):
            return
        self._rates.setdefault(at[0], {})[slots] = slots / median(self._seen[_SKIPPED:])
        if not self.pays(shape, slots):
            log.info("%d slots train little more than %d: the ladder ends there", slots, slots // 2)
        self._keep(folder)

    def _keep(self, folder: Path | None) -> None:
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_file(folder / FILE, json.dumps({**_load(folder), self._of: self._rates}, indent=1).encode())
        except OSError as error:
            log.warning("what was found about slots is not kept: %s", error)


def _load(folder: Path) -> dict[str, Any]:
    try:
        held = json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}
