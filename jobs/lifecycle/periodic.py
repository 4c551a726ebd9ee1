"""Periodic tasks: each has parts, and a part that fails keeps no other part, and one of its items no other item."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from core.actor import acting
from core.telemetry import metrics
from jobs.services import Services
from storage.database import AWAY

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Part:
    """One part of a periodic task, which does not depend on the others."""

    name: str
    run: Callable[[Services], object]


def run_parts(services: Services, parts: Iterable[Part]) -> list[str]:
    """Run every part. An error is logged and counted, and the next round tries again. Returns the parts that failed."""
    failed = []
    for part in parts:
        try:
            with acting("sweep", part.name):
                part.run(services)
        except AWAY as error:
            log.warning("%s waits for the next round: the database cannot be used now (%s)", part.name, error)
        except Exception:
            log.exception("%s failed; the next round tries again", part.name)
        else:
            continue
        failed.append(part.name)
        metrics.SWEEP_FAILURES.add(1, part.name)
    return failed


def each(part: str, items: Iterable[Item], work: Callable[[Item], Result]) -> list[Result]:
    """Call `work` for each item. One that raises is logged and counted, and left out of the results.

    If the database cannot be used, this raises at once: the other items would fail too.
    """
    results = []
    for item in items:
        try:
            results.append(work(item))
        except AWAY:
            raise
        except Exception:
            log.exception("%s failed for %s; the next round tries again", part, _name(item))
            metrics.SWEEP_FAILURES.add(1, part)
    return results


def _name(item: object) -> str:
    return str(getattr(item, "name", None) or getattr(item, "id", None) or item)[:200]
