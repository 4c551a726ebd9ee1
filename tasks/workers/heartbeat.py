"""A training worker reports its queues, slots, device and base models.

Admission knows from the slots how many jobs to send, and the page which base models can be trained here.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence

from core import essential
from core.brokers.queues import TRAIN
from jobs.admission import workers
from jobs.services import services
from storage.database import AWAY
from tasks.app import app

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 300.0  # at the base models on this machine: they may come and go


class Heartbeat:
    """Reports one worker from a thread until it leaves."""

    def __init__(
        self, worker: str, queues: Sequence[str], slots: int, device: str = "", *, captions: bool = False
    ) -> None:
        """captions: whether the worker has a captioner."""
        self._worker, self._queues, self._slots, self._device = worker, queues, slots, device
        self._captions = captions
        self._bases: Mapping[str, str] | None = None
        self._looked_at = -_LOOK_EVERY_S
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
                self._follow(self._beat())
            except AWAY as error:
                log.warning("the slots of this worker are not reported: the database does not answer (%s)", error)
            except Exception:  # reporting must not end a worker that trains
                log.exception("the slots of this worker are not reported")
            if self._left.wait(workers.BEAT_S):
                return

    def _beat(self) -> bool:
        if time.monotonic() - self._looked_at > _LOOK_EVERY_S:
            from training.families import on_this_machine  # torch: only on workers that train

            families = [queue.removeprefix(TRAIN) for queue in self._queues]
            self._bases = on_this_machine.find(families, services().settings.base_models)
            self._looked_at = time.monotonic()
        return workers.beat(
            services(), self._worker, self._queues, self._slots, self._device, self._bases, captions=self._captions
        )

    def _follow(self, drains: bool) -> None:
        """Stop taking jobs, or take them again."""
        if drains == self._drains:
            return
        log.warning("this worker %s", "is drained: it takes no further job" if drains else "takes jobs again")
        control = app.control.cancel_consumer if drains else app.control.add_consumer
        for queue in self._queues:
            control(queue, destination=[self._worker])
        self._drains = drains
