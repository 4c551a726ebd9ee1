"""What is expected of a job that has not ended its train stage."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Expected:
    """place: in the order, 1 is the next one; None for a job that was sent. Times are None where no worker reports."""

    place: int | None = None
    start: datetime | None = None  # of the train stage; None once it has begun
    end: datetime | None = None
