"""A deletion, and how far it is."""

from datetime import datetime
from typing import Literal

from pydantic import ConfigDict, Field

from jobs.deletion.requests import DeletionView
from web.models.common import JOB, ResponseModel


class Deletion(ResponseModel):
    """What is deleted, and how far that is."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "del_01m804v9x2k4b7q1c5d8f3g6h0",
                "kind": "training",
                "status": "running",
                "subjectId": "rex",
                "trainingId": JOB,
                "imageId": None,
                "note": "the end of a training is still to be announced",
                "createdAt": "2026-11-28T09:00:00Z",
                "dueAt": "2026-11-28T09:00:00Z",
                "finishedAt": None,
            }
        }
    )

    id: str
    kind: Literal["picture", "subject", "training", "owner"]
    status: Literal["waiting", "running", "done"] = Field(description="A deletion that is `waiting` can be undone.")
    subject_id: str | None = Field(description="Null once the deletion is done.")
    training_id: str | None
    image_id: str | None
    note: str | None = Field(description="What the deletion waits for. For people; may change.")
    created_at: datetime
    due_at: datetime = Field(description="When the deletion begins; until then it can be undone.")
    finished_at: datetime | None


class Deletions(ResponseModel):
    """The deletions that are not done."""

    deletions: list[Deletion]


def deletion_of(view: DeletionView) -> Deletion:
    """The response for a deletion."""
    return Deletion(
        id=view.id,
        kind=view.kind.value,
        status=view.status,
        subject_id=view.subject_id,
        training_id=view.target_id if view.kind == "training" else None,
        image_id=view.target_id if view.kind == "picture" else None,
        note=view.note,
        created_at=view.created_at,
        due_at=view.due_at,
        finished_at=view.finished_at,
    )
