"""Keeps leases while their steps work."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

from sqlmodel import Session

from core import essential
from core.errors import LeaseLost
from core.telemetry import metrics
from storage.database import AWAY, Database

log = logging.getLogger(__name__)

_AFTER_OUTAGE_S = 0.5


class Renewable(Protocol):
    """A lease that `LeaseKeeper` can keep: of a job, a picture, or a drawing (`jobs.drawings`)."""

    @property
    def job_id(self) -> str: ...

    @property
    def stage(self) -> str: ...

    def renew(self, session: Session, lease_s: float) -> None:
        """Extend the lease by `lease_s` seconds from now. Raises LeaseLost if another claim has replaced it."""


class HeldLease:
    """A lease that is being renewed; `lost` is set once another worker has claimed it, or its time is over."""

    def __init__(
        self, lease: Renewable, limit_s: float = math.inf, hand_over: Callable[[str], None] | None = None
    ) -> None:
        self.lease, self.limit_s, self.hand_over = lease, limit_s, hand_over
        self.until = time.monotonic() + limit_s
        self.lost = threading.Event()
        self.renewing = threading.Lock()


class LeaseKeeper:
    """Renews all leases of this process from one thread while their steps work.

    A database outage loses no lease: no other worker can claim it either, and the next renewal that gets through
    finds the token still valid. A step that hangs keeps its lease only for its time limit.
    """

    def __init__(self, database: Database, lease_s: float) -> None:
        self._database, self._lease_s = database, lease_s
        self._all_held: set[HeldLease] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_away = False  # whether the database could not be used in the last round

    @contextmanager
    def keeping(
        self, lease: Renewable, limit_s: float = math.inf, hand_over: Callable[[str], None] | None = None
    ) -> Iterator[HeldLease]:
        """Keep `lease` alive inside the block, for at most `limit_s` seconds.

        hand_over: gives the lease back for a reason, so that another worker continues (`hand_over_all`).
        """
        held = HeldLease(lease, limit_s, hand_over)
        with self._lock:
            self._all_held.add(held)
            if self._thread is None:
                self._thread = essential.start("leases", self._run)
        try:
            yield held
        finally:
            # Wait for a renewal in progress: it must not take the lease again after the step has given it back.
            with held.renewing:
                self._forget(held)

    def hand_over_all(self, reason: str) -> None:
        """Hand over whatever this process still works on: its machine vanishes before these steps can end.

        A step may be loading a base model, or be in the middle of a long step, which nothing can interrupt. Another
        worker continues from the last checkpoint; what this one still writes is refused once that has claimed the job.
        """
        with self._lock:
            all_held = list(self._all_held)
        for held in all_held:
            with held.renewing:
                if held.hand_over is None or held not in self._all_held:
                    continue
                held.lost.set()
                self._forget(held)
                try:
                    held.hand_over(reason)
                except Exception:  # of one of them: the others have little time
                    log.exception("the %s of %s is not handed over", held.lease.stage, held.lease.job_id)

    def _run(self) -> None:
        pause = threading.Event()
        pause_s = self._lease_s / 3
        while True:
            pause.wait(pause_s)
            with self._lock:
                all_held = list(self._all_held)
            self._is_away = not self._renew_all(all_held)
            # Soon after an outage, so that no sweep finds an expired lease before its renewal.
            pause_s = min(self._lease_s / 3, _AFTER_OUTAGE_S) if self._is_away else self._lease_s / 3

    def _renew_all(self, all_held: Sequence[HeldLease]) -> bool:
        """Renew the leases. Returns False if the database cannot be used.

        SQLite lets one writer in at a time and writes to the disk at each commit, so there one transaction renews all:
        with one for each, the slow downloads of one owner delay the writes of everybody. On PostgreSQL a transaction
        with many rows could meet another one that locks them in another order.
        """
        if self._database.is_sqlite and len(all_held) > 1:
            try:
                return self._renew_together(all_held)
            except Exception:  # of one of them: the others must be renewed
                log.exception("the leases are renewed one by one")
        return all(self._renew_together([held]) for held in all_held)

    def _renew_together(self, all_held: Sequence[HeldLease]) -> bool:
        """Renew in one transaction the leases whose steps still work. Returns False if the database cannot be used."""
        with ExitStack() as locks:
            for held in all_held:
                locks.enter_context(held.renewing)
            kept = [held for held in all_held if held in self._all_held and not self._is_overdue(held)]
            try:
                lost = self._write(kept) if kept else []
            except AWAY as error:
                if not self._is_away:  # once for each outage
                    log.warning("leases are not renewed: the database does not answer (%s)", error)
                self._is_away = True
                return False
            except Exception:  # this thread renews every lease of the process, so it must not end
                if len(kept) > 1:
                    raise
                log.exception("the lease of %s is not renewed", kept[0].lease.job_id)
                return True
            for held in lost:
                held.lost.set()
                self._forget(held)
            return True

    def _is_overdue(self, held: HeldLease) -> bool:
        """Whether the step takes longer than it may; if so, its lease is given up."""
        if time.monotonic() <= held.until:
            return False
        log.error(
            "the %s of %s takes longer than %.0f s: another worker may try",
            held.lease.stage, held.lease.job_id, held.limit_s,
        )  # fmt: skip
        metrics.STAGES_OVERDUE.add(1, held.lease.stage)
        held.lost.set()
        self._forget(held)
        return True

    def _write(self, all_held: Sequence[HeldLease]) -> list[HeldLease]:
        """Renew leases in one transaction. Returns those that other claims have replaced."""
        lost = []
        with self._database.writing() as session:
            for held in all_held:
                try:
                    held.lease.renew(session, self._lease_s)
                except LeaseLost:
                    lost.append(held)
        return lost

    def _forget(self, held: HeldLease) -> None:
        with self._lock:
            self._all_held.discard(held)
