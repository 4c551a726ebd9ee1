"""After a job: its clean-up, told by a message of the outbox."""

import sqlalchemy as sa

from core.errors import NotFound
from jobs.shell import clean_up as take_away
from jobs.wiring import House
from notifications import outbox


def clean_up(house: House, job_id: str, message_id: str) -> None:
    """Take away what a final job no longer needs, and note that it is done."""
    take_away(house, job_id)
    with house.database.writing() as session:
        outbox.mark_sent(session, message_id)


_ = sa, NotFound
