"""The recipe of a job, from its row. One place reads it, so that one place changes when its form does."""

from typing import Any

from storage.tables import Job
from training.spec import TrainSpec


def spec_of(job: Job) -> TrainSpec:
    """The validated recipe of a job."""
    return TrainSpec.model_validate(job.spec)


def spec_columns(spec: TrainSpec) -> dict[str, Any]:
    """What a new job's row holds of its recipe: the whole as JSON, and what is queried as columns."""
    return {
        "spec": spec.model_dump(mode="json"),
        "family": spec.family,
        "backend": spec.backend,
        "resolution": spec.resolution,
        "batch_size": spec.batch_size,
    }
