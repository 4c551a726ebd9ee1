"""What the live training workers have: their devices, and the base models that they can train."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from sqlmodel import Session, col, select

from core.brokers.queues import TRAIN
from core.clock import utcnow
from jobs.admission.queues import REMOTE, queue_of
from jobs.admission.statement import ALIVE_S
from jobs.services import Services
from jobs.view import JobView
from storage.tables.admission import AdmissionPause, TrainingWorker
from training.families.registry import BASE_MODELS


@dataclass(frozen=True)
class LiveBases:
    """The base models that live workers have reported: `here`, or `download` before the first training, by name.

    `silent`: the queues of workers that do not say what they have. Without any live worker, nothing is known.
    """

    any_worker: bool = False
    bases: dict[str, str] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()

    def where(self, base_model: str) -> str:
        """`here`, `download`, `nowhere`, or `unknown`."""
        queue = f"{TRAIN}{BASE_MODELS[base_model].family}"
        if not self.any_worker or queue in self.silent:
            return "unknown"
        return self.bases.get(base_model, "nowhere")


def live_bases(services: Services) -> LiveBases:
    """What the live workers have. If two have a base model, the one that need not download it counts."""
    with services.database.reading() as session:
        rows = _live(session)
    found: dict[str, str] = {}
    for row in rows:
        for name, where in (row.bases or {}).items():
            found[name] = "here" if "here" in (where, found.get(name)) else where
    return LiveBases(bool(rows), found, frozenset(row.queue for row in rows if row.bases is None))


def live_devices(session: Session, queue: str) -> list[str]:
    """The names of the devices that train the jobs of a queue now."""
    return sorted({row.device for row in _live(session, queue) if row.device})


def _live(session: Session, queue: str | None = None) -> Sequence[TrainingWorker]:
    """The live workers of every queue, or of one."""
    is_live = col(TrainingWorker.seen_at) > utcnow() - timedelta(seconds=ALIVE_S)
    query = select(TrainingWorker).where(is_live, ~col(TrainingWorker.draining))
    return session.exec(query if queue is None else query.where(TrainingWorker.queue == queue)).all()


def why_it_waits(services: Services, view: JobView) -> str:
    """Why a job that waits for its turn does not start, in a sentence; empty if others are simply before it."""
    if view.awaits_approval:
        return "The training waits for the approval of an operator."
    queue = queue_of(view.spec)
    scopes = ("all", f"queue:{queue}", f"family:{view.spec.family}")
    with services.database.reading() as session:
        pause = session.exec(select(AdmissionPause).where(col(AdmissionPause.scope).in_(scopes)).limit(1)).first()
        workers = _live(session, queue)
    if pause is not None:
        return f"The operator has paused new trainings{f': {pause.reason}' if pause.reason else ''}."
    if queue != REMOTE and not workers:
        return f"No worker that trains {view.spec.base_model} is running. It starts as soon as one is."
    return ""
