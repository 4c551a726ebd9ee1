"""What the processes count, in one place. Any room counts here in a line; what shows it is chosen where they start.

Without a sink (training by hand, a script) a count costs a function call and goes nowhere. What the database knows
is not counted here but asked of it, by whoever serves `/metrics`: a count in a process that was killed lies.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Measure:
    """One number by name, told in a sentence, with the labels that tell its parts apart."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def add(self, amount: float, *labels: str) -> None:
        """A counter: so much more. A histogram: one observation of `amount`. A gauge: the number as it is now."""
        if _sink is not None:
            _sink.record(self, amount, labels)


class Sink(Protocol):
    """Who keeps what is counted in this process."""

    def record(self, measure: Measure, amount: float, labels: tuple[str, ...]) -> None: ...


_sink: Sink | None = None


def set_sink(sink: Sink | None) -> None:
    """From now on this process's counts go to `sink`; with None nowhere."""
    global _sink
    _sink = sink


# ---- the life of a job ----

STAGE_SECONDS = Measure(
    "imprint_stage_seconds", "histogram",
    "Time that a worker was at a stage of one job (preprocess: at one picture), by how it ended. Of a training on a "
    "remote server this is the time to submit it and to fetch its file.",
    ("stage", "outcome"), (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180, 600, 1800, 3600, 7200, 14400, 28800),
)  # fmt: skip
NOTICES = Measure(
    "imprint_notice_attempts", "counter", "Attempts to tell an application, by what came of them.", ("verdict",)
)
SWEPT_AT = Measure("imprint_sweep_time_seconds", "gauge", "When this worker last finished a sweep, as Unix time.")
AUDITED_AT = Measure("imprint_audit_time_seconds", "gauge", "When this worker last finished an audit, as Unix time.")
AUDIT_FINDINGS = Measure("imprint_audit_findings", "gauge", "Rules of the ledger that the last audit found broken.")

# ---- training ----

STEPS = Measure("imprint_training_steps", "counter", "Steps trained, counted for each job.", ("family",))
COHORT = Measure(
    "imprint_cohort_jobs", "histogram", "Jobs that were trained together, observed at every batched step.",
    ("family",), (1, 2, 4, 8, 16, 32),
)  # fmt: skip
DEVICE_SECONDS = Measure(
    "imprint_device_seconds", "counter",
    "Time that a device was stepping trainings, by the clock, not times the jobs: GPU seconds where `device` is cuda.",
    ("device", "family"),
)  # fmt: skip
ENCODINGS = Measure(
    "imprint_encodings", "counter",
    "Encodings of pictures and captions that trainings wanted: found in the cache, or made.", ("kind", "result"),
)  # fmt: skip
BASE_MODELS = Measure(
    "imprint_base_models", "counter", "Base models that trainings wanted: resident already, or loaded.",
    ("family", "result"),
)  # fmt: skip
SELF_CHECK = Measure(
    "imprint_self_check", "gauge",
    "Whether a worker's check of its GPU at its start agreed (1) or not (0): of `eager` steps, without which it takes "
    "no job of the family, and of `recorded` ones, without which it sends steps one by one.", ("family", "steps"),
)  # fmt: skip

ALL = (
    STAGE_SECONDS, NOTICES, SWEPT_AT, AUDITED_AT, AUDIT_FINDINGS, STEPS, COHORT, DEVICE_SECONDS, ENCODINGS, BASE_MODELS,
    SELF_CHECK,
)  # fmt: skip


@contextmanager
def stepping(family: str, device: str, jobs: int) -> Iterator[None]:
    """Count one batched step of `jobs` jobs; one that fails trained nobody, but took the device's time."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        DEVICE_SECONDS.add(time.perf_counter() - begun, device, family)
    STEPS.add(jobs, family)
    COHORT.add(jobs, family)
