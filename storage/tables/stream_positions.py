"""How far the ingress has read a RabbitMQ stream.

A stream keeps its messages, and RabbitMQ keeps no position for a reader that speaks AMQP 0.9.1.
"""

import sqlalchemy as sa
from sqlmodel import Field, Session, SQLModel


class StreamPosition(SQLModel, table=True):
    """`next_offset` is the offset of the first message of a stream that was not worked on."""

    __tablename__ = "stream_position"

    queue: str = Field(primary_key=True, sa_type=sa.Text)
    next_offset: int = Field(sa_type=sa.BigInteger)


def next_offset(session: Session, queue: str) -> int | None:
    """The offset of the first message that was not worked on; None for a stream that was never read."""
    position = session.get(StreamPosition, queue)
    return None if position is None else position.next_offset


def keep(session: Session, queue: str, next_offset: int) -> None:
    """Record that every message before this offset was worked on."""
    session.merge(StreamPosition(queue=queue, next_offset=next_offset))
