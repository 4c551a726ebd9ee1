"""Which queue a job waits for, and what it has in common with the jobs of one training step."""

from typing import Any

import sqlalchemy as sa
from sqlmodel import col

from core.brokers.queues import TRAIN
from storage.tables.jobs import ACTIVE, Job
from training.families.registry import trained_here
from training.memory_plan import padded_ranks
from training.spec import TrainSpec

HELD = "held"  # not a queue of Celery either, and not one of `every_queue`: these jobs wait for an approval
REMOTE = "remote"  # not a queue of Celery: jobs of remote backends share one window


def every_queue() -> tuple[str, ...]:
    """All queues, by families that workers train."""
    return (*(f"{TRAIN}{family}" for family in trained_here()), REMOTE)


def queue_of(spec: TrainSpec) -> str:
    """The queue whose window a job takes a place of."""
    return f"{TRAIN}{spec.family}" if spec.backend == "local" else REMOTE


def shape_of(spec: TrainSpec) -> str:
    """The same text for jobs that may train in one step."""
    parts = (
        spec.base_model, spec.resolution, spec.aspect_buckets, spec.batch_size, padded_ranks(spec.ranks),
        spec.objective.prior_weight > 0, spec.adapter.targets, spec.adapter.dora, spec.adapter.text_encoder,
        spec.optimizer,
    )  # fmt: skip
    return " ".join(map(str, parts))


def is_waiting() -> sa.ColumnElement[bool]:
    """The SQL condition that an active job waits for its turn, in the words of the partial index of these jobs.

    SQLite uses a partial index only if the values are literals in the statement.
    """
    active: sa.BindParameter[Any] = sa.bindparam(None, ACTIVE, expanding=True, literal_execute=True)
    return sa.and_(
        col(Job.status).in_(active), col(Job.admitted_at).is_(None), col(Job.queue) != sa.literal_column("''")
    )
