"""Children of a test: many at once, or one that is killed at an exact statement."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from storage.database import Database

Work = Callable[[Session], Any]

# Forked, so that sixteen of them do not import the world sixteen times; each makes connections of its own.
FORK = multiprocessing.get_context("fork")
_WAIT_S = 60


def at_once(address: str, works: Sequence[Work | Sequence[Work]]) -> list[Any]:
    """Do each work in a process of its own, all starting together; what each gave, or the error it raised.

    A sequence of works is done one transaction after another, and gives a list.
    """
    return _all(_child, [(address, work) for work in works])


def processes_at_once(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """The same for works that open their own transactions."""
    return _all(_plain_child, [(work,) for work in works])


def _all(target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    barrier = FORK.Barrier(len(arguments))
    children = []
    for given in arguments:
        ours, theirs = FORK.Pipe(duplex=False)
        child = FORK.Process(target=target, args=(*given, barrier, theirs))
        child.start()
        theirs.close()
        children.append((child, ours))
    results = []
    for child, ours in children:
        assert ours.poll(_WAIT_S), "a child did not answer"
        results.append(ours.recv())
        child.join(_WAIT_S)
    return results


def killed_at(address: str, point: str, work: Work) -> bool:
    """Do a work in a process that kills itself with SIGKILL at a point; False if it never came there.

    Points: `before N` and `after N` of the N-th statement (from 1; SQLite's BEGIN is one), `before commit`,
    `after commit`.
    """
    child = FORK.Process(target=_doomed, args=(address, point, work))
    child.start()
    child.join(_WAIT_S)
    assert child.exitcode in (0, -signal.SIGKILL), child.exitcode
    return child.exitcode != 0


def _child(address: str, work: Work | Sequence[Work], barrier: Barrier, answer: Connection) -> None:
    database = Database(address)
    with database.reading() as session:
        session.execute(sa.text("SELECT 1"))  # connected before the start, so that all are equally fast
    barrier.wait(_WAIT_S)
    answer.send([_try(database, one) for one in work] if isinstance(work, Sequence) else _try(database, work))
    answer.close()


def _plain_child(work: Callable[[], Any], barrier: Barrier, answer: Connection) -> None:
    barrier.wait(_WAIT_S)
    try:
        answer.send(work())
    except Exception as error:  # noqa: BLE001 - as below
        answer.send(error)
    answer.close()


def _try(database: Database, work: Work) -> Any:
    try:
        with database.writing() as session:
            return work(session)
    except Exception as error:  # noqa: BLE001 - whatever it is, the test that waits for it shall see it
        return error


def _doomed(address: str, point: str, work: Work) -> None:
    database = Database(address)
    statements = 0

    def reach(here: str) -> None:
        if here == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(*_: Any) -> None:
        nonlocal statements
        statements += 1
        reach(f"before {statements}")

    with database.reading() as session:  # what a new connection says to the server does not count
        session.execute(sa.text("SELECT 1"))
    sa.event.listen(database.engine, "before_cursor_execute", before)
    sa.event.listen(database.engine, "after_cursor_execute", lambda *_: reach(f"after {statements}"))
    sa.event.listen(database.engine, "commit", lambda _: reach("before commit"))
    with database.writing() as session:
        work(session)
    reach("after commit")
