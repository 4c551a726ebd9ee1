"""The check of a worker's card before it takes jobs: tiny trainings in several ways, which must agree.

For each family it compares the gradients with peft's in float32; gradients in the precision of jobs with those in
float32; steps replayed from CUDA graphs with eager steps; a job that shares its steps with the job alone; and a resumed
training with an uninterrupted one. `imprint doctor` runs the same check, also without CUDA.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from training.device import DeviceReport, card_facts, choose, precision, probe
from training.engine.recorder import Record, cuda_recorder
from training.families.registry import FAMILIES, trained_here
from training.tiny.trial import Trial

# Each comparison, and the largest relative difference that rounding explains, in float32 and in lower precision.
_COMPARISONS = {
    "peft": ("the engine's gradients and peft's in float32", 1e-3, 1e-3),
    "precision": ("gradients in the base's precision and in float32", 1e-3, 0.15),
    "recorded": ("recorded steps and steps sent one by one", 1e-2, 0.3),
    "slots": ("a job beside another and the job alone", 1e-2, 0.3),
    "resume": ("a resumed training and one that ran through", 1e-2, 0.3),
}


@dataclass(frozen=True)
class FamilyCheck:
    """The results for one family."""

    family: str
    differences: dict[str, float] = field(default_factory=dict)  # relative, by comparison
    faults: dict[str, str] = field(default_factory=dict)  # by comparison: what disagreed or failed

    @property
    def is_usable(self) -> bool:
        """Whether this device can train jobs of the family, with or without CUDA graphs."""
        return not set(self.faults) - {"recorded"}


@dataclass(frozen=True)
class SelfCheck:
    """The result of checking a device."""

    device: DeviceReport
    facts: dict[str, str]  # about the card and its software
    families: list[FamilyCheck]
    records: bool | None  # whether steps may be recorded as CUDA graphs; None: not on this device
    seconds: float

    @property
    def faults(self) -> list[str]:
        """All faults, as text."""
        return [f"{found.family}: {fault}" for found in self.families for fault in found.faults.values()]

    @property
    def unusable(self) -> list[str]:
        """The families that this device must not train."""
        return [found.family for found in self.families if not found.is_usable]

    @property
    def verdict(self) -> str:
        """The result in a few words."""
        if self.unusable:
            return f"takes no job of {', '.join(self.unusable)}: {'; '.join(self.faults)}"
        if self.records is False:
            return f"steps are sent one by one: {'; '.join(self.faults)}"
        return "recorded steps agree" if self.records else "steps agree"

    @property
    def text(self) -> str:
        """One line for the log."""
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items())
        return f"{self.device.text}; {facts}; {self.verdict} ({self.seconds:.1f} s)"

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        device = {"device": self.device.to_dict(), "facts": self.facts, "records": self.records}
        checks = [asdict(found) | {"is_usable": found.is_usable} for found in self.families]
        return {**device, "families": checks, "verdict": self.verdict, "seconds": round(self.seconds, 1)}


def check_device(
    folder: Path,
    device: str = "auto",
    *,
    families: Sequence[str] | None = None,
    asked_precision: str = "auto",
    deterministic: bool = False,
    record: Record | None = None,
) -> SelfCheck:
    """Test the device with a product, then train a tiny base model of each family on it.

    folder: for the tiny base models. record: records a step; by default CUDA graphs on a card. Raises BackendFailed if
    the device does not exist or computes wrong products.
    """
    begun = time.monotonic()
    report, chosen = probe(device, deterministic=deterministic), choose(device)
    record = cuda_recorder(chosen).record if record is None and chosen.type == "cuda" else record
    dtype = precision(chosen, asked=asked_precision)
    found: list[FamilyCheck] = []
    checked: dict[str | None, FamilyCheck] = {}  # by the code: the sizes of one model are checked once
    for name in trained_here() if families is None else families:
        if FAMILIES[name].code not in checked:
            checked[FAMILIES[name].code] = _checked(name, folder, chosen, dtype, record)
        found.append(replace(checked[FAMILIES[name].code], family=name))
    is_refused = any("recorded" in one.faults for one in found)
    if chosen.type == "cuda":
        torch.cuda.empty_cache()
    return SelfCheck(
        report, card_facts(chosen, dtype), found, None if record is None else not is_refused, time.monotonic() - begun
    )


def _checked(name: str, folder: Path, device: torch.device, dtype: torch.dtype, record: Record | None) -> FamilyCheck:
    """Run all comparisons of one family. Any error is a fault of its comparison."""
    differences: dict[str, float] = {}
    faults: dict[str, str] = {}
    try:
        trial = Trial(name, folder, device, dtype)
        comparisons = trial.comparisons(record)
    except Exception as error:  # noqa: BLE001 - jobs of this family would fail in the same way
        return FamilyCheck(name, faults={"load": f"a tiny base cannot be loaded: {_describe(error)}"})
    for kind, compare in comparisons:
        about, *limits = _COMPARISONS[kind]
        limit = limits[0 if dtype == torch.float32 else 1]
        try:
            differences[kind] = compare()
        except Exception as error:  # noqa: BLE001 - as above
            faults[kind] = f"{about}: {_describe(error)}"
        else:
            if not differences[kind] <= limit:  # false for NaN
                faults[kind] = f"{about} differ by {differences[kind]:.2g}, at most {limit:.2g} is rounding"
    return FamilyCheck(name, differences, faults)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
