"""The metrics that processes count. Any package counts here with one call; each process sets its own sink at its start.

Without a sink (training by hand, a script) a count does nothing. Numbers that the database holds are not counted here:
`/metrics` of the web process queries them, since the counts of a killed process are lost.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Measure:
    """A named number, its description, and the labels that divide it."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def add(self, amount: float, *labels: str) -> None:
        """Add `amount` to a counter, observe it in a histogram, or set a gauge to it."""
        if _sink is not None:
            _sink.record(self, amount, labels)


class Sink(Protocol):
    """Stores the counts of this process."""

    def record(self, measure: Measure, amount: float, labels: tuple[str, ...]) -> None: ...


_sink: Sink | None = None


def set_sink(sink: Sink | None) -> None:
    """Send the counts of this process to `sink` from now on, or nowhere."""
    global _sink
    _sink = sink


# ---- the life of a job ----

STAGE_SECONDS = Measure(
    "imprint_stage_seconds", "histogram",
    "Time of a worker on a stage of one job (preprocess: on one picture), by its outcome. For a training on a remote "
    "server this is the time to submit it and to fetch its file.",
    ("stage", "outcome"), (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180, 600, 1800, 3600, 7200, 14400, 28800),
)  # fmt: skip
STAGES_OVERDUE = Measure(
    "imprint_stages_overdue", "counter",
    "Attempts at a stage that took longer than IMPRINT_STAGE_TIMEOUT_S and lost their lease.", ("stage",),
)  # fmt: skip
PICTURES_AHEAD = Measure(
    "imprint_pictures_ahead", "counter",
    "Pictures of jobs that wait for their turn, which idle fetch workers prepared; `overtaken`: the turn came first.",
    ("outcome",),
)  # fmt: skip
LOG_LINES_LOST = Measure(
    "imprint_log_lines_lost", "counter", "Log lines that could not be written, for example because the disk is full."
)
NOTICES = Measure("imprint_notice_attempts", "counter", "Attempts to deliver a webhook, by outcome.", ("verdict",))
SWEPT_AT = Measure("imprint_sweep_time_seconds", "gauge", "Unix time at which this worker last finished a sweep.")
SWEEP_FAILURES = Measure(
    "imprint_sweep_failures", "counter",
    "Failures of a part of a periodic task, or of one of its items. The others still ran; the next round tries again.",
    ("part",),
)  # fmt: skip
AUDITED_AT = Measure("imprint_audit_time_seconds", "gauge", "Unix time at which this worker last finished an audit.")
AUDIT_FINDINGS = Measure("imprint_audit_findings", "gauge", "Broken ledger rules that the last audit found.")

# ---- training ----

STEPS = Measure("imprint_training_steps", "counter", "Steps trained, counted for each job.", ("family",))
COHORT = Measure(
    "imprint_cohort_jobs", "histogram", "Jobs trained together, observed at each batched step.",
    ("family",), (1, 2, 4, 8, 16, 32),
)  # fmt: skip
DEVICE_SECONDS = Measure(
    "imprint_device_seconds", "counter",
    "Time that a device spent on training steps, counted once for all jobs of a step: GPU seconds if `device` is cuda.",
    ("device", "family"),
)  # fmt: skip
ENCODINGS = Measure(
    "imprint_encodings", "counter",
    "Encodings of pictures and captions that trainings used: found in the cache, or made.", ("kind", "result"),
)  # fmt: skip
BASE_MODELS = Measure(
    "imprint_base_models", "counter", "Base models that trainings used: already resident, or loaded.",
    ("family", "result"),
)  # fmt: skip
SELF_CHECK = Measure(
    "imprint_self_check", "gauge",
    "Whether the GPU passed (1) or failed (0) the worker's check at its start. Without `eager` the worker takes no job "
    "of the family; without `recorded` it runs steps one by one.", ("family", "steps"),
)  # fmt: skip

ALL = (
    STAGE_SECONDS, STAGES_OVERDUE, PICTURES_AHEAD, LOG_LINES_LOST, NOTICES, SWEPT_AT, SWEEP_FAILURES, AUDITED_AT,
    AUDIT_FINDINGS, STEPS, COHORT, DEVICE_SECONDS, ENCODINGS, BASE_MODELS, SELF_CHECK,
)  # fmt: skip


@contextmanager
def stepping(family: str, device: str, jobs: int) -> Iterator[None]:
    """Count one batched step of `jobs` jobs. A step that fails counts as time of the device only."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        DEVICE_SECONDS.add(time.perf_counter() - begun, device, family)
    STEPS.add(jobs, family)
    COHORT.add(jobs, family)
