"""A training worker reports its queues and slots, from which admission knows how many jobs to send."""

import logging
import threading
from collections.abc import Sequence

from core import essential
from jobs.admission import workers
from jobs.services import services
from storage.database import AWAY
from tasks.app import app

log = logging.getLogger(__name__)


class Heartbeat:
    """Reports one worker from a thread until it leaves."""

    def __init__(self, worker: str, queues: Sequence[str], slots: int, *, captions: bool = False) -> None:
        """captions: whether the worker has a captioner."""
        self._worker, self._queues, self._slots, self._captions = worker, queues, slots, captions
        self._left = threading.Event()
        self._drains = False

    def start(self) -> None:
        essential.start("heartbeat", self._run, may_return=True)

    def leave(self) -> None:
        """Report that the worker stops."""
        self._left.set()
        try:
            workers.leave(services(), self._worker)
        except AWAY as error:
            log.warning("this worker's slots count for a minute longer: the database does not answer (%s)", error)

    def _run(self) -> None:
        while True:
            try:
                drains = workers.beat(services(), self._worker, self._queues, self._slots, captions=self._captions)
                self._follow(drains)
            except AWAY as error:
                log.warning("the slots of this worker are not reported: the database does not answer (%s)", error)
            except Exception:  # reporting must not end a worker that trains
                log.exception("the slots of this worker are not reported")
            if self._left.wait(workers.BEAT_S):
                return

    def _follow(self, drains: bool) -> None:
        """Stop taking jobs, or take them again."""
        if drains == self._drains:
            return
        log.warning("this worker %s", "is drained: it takes no further job" if drains else "takes jobs again")
        control = app.control.cancel_consumer if drains else app.control.add_consumer
        for queue in self._queues:
            control(queue, destination=[self._worker])
        self._drains = drains
