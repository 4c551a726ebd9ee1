"""One background thread for each process, which sends the outbox after a transaction has added a message."""

import atexit
import logging
import threading
from collections.abc import Callable

from core import essential
from storage.database import AWAY

log = logging.getLogger(__name__)

EXIT_S = 5.0  # how long a process that ends waits for the last round; what is left, the sweep sends


class OutboxSender:
    """Calls `send` in its own thread after every `wake`. Create it after a fork: threads do not survive one.

    `send` returns whether everything that was due is sent. The thread starts with the first `wake`. No caller waits for
    a slow broker or database; what could not be sent stays in the outbox until the next `wake` or the sweep.
    """

    def __init__(self, send: Callable[[], bool]) -> None:
        self._send = send
        self._changed = threading.Condition()
        self._asked = self._sent = 0  # wakes so far, and how many of them a finished round has seen
        self._thread: threading.Thread | None = None
        self.has_sent_all = True  # whether the last finished round sent everything

    def wake(self) -> None:
        """Send what is due soon. Calls at the same time lead to one round."""
        with self._changed:
            self._asked += 1
            if self._thread is None:
                self._thread = essential.start("outbox", self._run)
                # Not called in the children of a prefork pool: tasks/workers/worker.py flushes there.
                atexit.register(self.flush)
            self._changed.notify_all()

    @property
    def wakes(self) -> int:
        """How many transactions of this process have added something to the outbox."""
        return self._asked

    def flush(self, timeout_s: float = EXIT_S) -> bool:
        """Wait for the round after the last `wake`; False if it takes longer than `timeout_s`."""
        with self._changed:
            asked = self._asked
            return self._changed.wait_for(lambda: self._sent >= asked, timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked > self._sent)
                asked = self._asked
            sent_all = False
            try:
                sent_all = self._send()
            except AWAY as error:
                log.warning("the database does not answer; messages wait for the sweep (%s)", type(error).__name__)
            except Exception:  # this thread sends for the whole process, so it must not end
                log.exception("sending the outbox failed; messages wait for the sweep")
            with self._changed:
                self._sent, self.has_sent_all = asked, sent_all
                self._changed.notify_all()
