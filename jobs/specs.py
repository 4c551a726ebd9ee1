"""The recipe of a job in its row: parsed and written here only."""

from typing import Any

from storage.tables.jobs import Job
from training.spec import STORED, TrainSpec


def spec_of(job: Job) -> TrainSpec:
    """The validated recipe of a job."""
    return TrainSpec.model_validate(job.spec, context=STORED)


def spec_columns(spec: TrainSpec) -> dict[str, Any]:
    """The columns of a new job's row that hold its recipe: all of it as JSON, and what is queried."""
    return {
        "spec": spec.model_dump(mode="json"),
        "family": spec.family,
        "backend": spec.backend,
        "resolution": spec.resolution,
        "batch_size": spec.batch_size,
    }
