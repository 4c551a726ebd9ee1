"""Sends what a request has written, after its answer: a broker that is slow or away keeps nobody waiting."""

import logging
import threading
from collections.abc import Callable

from jobs.services import Services
from storage.database import AWAY

log = logging.getLogger(__name__)


class Courier:
    """One thread that empties the outbox whenever it is told that there is something in it."""

    def __init__(self, services: Services, send: Callable[[Services], object]) -> None:
        self._services, self._send = services, send
        self._asked, self._leaving = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask(self) -> None:
        """Something was written. Many of these at once are one round."""
        self._asked.set()

    def stop(self, timeout_s: float = 10.0) -> None:
        """What was asked for is still sent, unless the broker is away: then the sweep sends it."""
        self._leaving = True
        self._asked.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._leaving:
            self._asked.wait()
            self._asked.clear()
            try:
                self._send(self._services)
            except AWAY as error:
                log.warning("not sent, the database does not answer; the sweep will (%s)", type(error).__name__)
            except Exception:  # this thread is the only one that sends for this process: it must not end
                log.exception("not sent; the sweep will")
