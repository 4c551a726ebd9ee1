"""The live training workers: each reports the queues that it takes from and its slots."""

from collections.abc import Mapping, Sequence
from datetime import timedelta

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.brokers.queues import TRAIN
from core.clock import utcnow
from core.errors import NotFound, SpecInvalid
from core.settings import Settings
from jobs.admission import decide
from jobs.admission.queues import queue_of
from jobs.admission.statement import ALIVE_S
from jobs.owners import audit_log
from jobs.services import Services
from jobs.view import Time, View
from storage.tables.admission import TrainingWorker
from training.families.registry import BASE_MODELS
from training.spec import TrainSpec

BEAT_S = 10.0


class WorkerView(View):
    """A training worker as it reported last."""

    worker: str
    queues: list[str]
    slots: int
    device: str
    bases: list[str]  # base models that it has
    draining: bool
    alive: bool
    seen_at: Time


def beat(
    services: Services, worker: str, queues: Sequence[str], slots: int, device: str = "",
    bases: Mapping[str, str] | None = None, *, captions: bool = False,
) -> bool:  # fmt: skip
    """Report a live worker. Returns whether it is to drain: take no further job.

    `captions`: whether it has a captioner. `bases`: by name the base models that it has (`here`) or can download
    (`download`); None: it does not say.
    """
    with services.database.writing() as session:
        opened: set[str] = set()
        known = {row.queue: row for row in _rows(session, worker)}
        now = utcnow()
        for queue in sorted(queues):
            row = known.pop(queue, None) or TrainingWorker(worker=worker, queue=queue, slots=0)
            if row.slots != slots or row.seen_at < now - timedelta(seconds=ALIVE_S):
                opened.add(queue)
            row.slots, row.seen_at, row.device = slots, now, device
            of_queue = {name: where for name, where in (bases or {}).items() if _queue(name) == queue}
            row.bases = None if bases is None else of_queue
            row.captions = captions
            session.add(row)
        for row in known.values():
            session.delete(row)
        session.flush()
        drains = any(row.draining for row in _rows(session, worker))
    if opened:
        decide.open_places(services.database, opened)
    return drains


def leave(services: Services, worker: str) -> None:
    """A worker stops: its slots are gone."""
    with services.database.writing() as session:
        session.connection().execute(sa.delete(TrainingWorker).where(col(TrainingWorker.worker) == worker))


def drain(services: Services, worker: str, draining: bool = True) -> WorkerView:
    """Have a worker take no further job, or take jobs again. Raises NotFound for one that does not report."""
    with services.database.writing() as session:
        rows = _rows(session, worker)
        if not rows:
            raise NotFound(f"there is no training worker {worker}; see: imprint workers")
        for row in rows:
            row.draining = draining
            session.add(row)
        audit_log.record(session, "worker.drained" if draining else "worker.undrained", worker=worker)
    decide.open_places(services.database, [row.queue for row in rows])
    return _view(rows)


def list_workers(services: Services) -> list[WorkerView]:
    """All training workers that have reported and not left, by name."""
    with services.database.reading() as session:
        rows = session.exec(select(TrainingWorker).order_by(TrainingWorker.worker, TrainingWorker.queue)).all()
    names = dict.fromkeys(row.worker for row in rows)
    return [_view([row for row in rows if row.worker == name]) for name in names]


def check_captioner(session: Session, spec: TrainSpec, settings: Settings) -> None:
    """Raise SpecInvalid if the workers that would caption the pictures of a request have all reported no captioner."""
    if spec.captions != "auto" or settings.caption_task is not None:
        return
    query = select(TrainingWorker.captions).where(TrainingWorker.queue == queue_of(spec))
    found = session.exec(query).all()
    if found and not any(found):
        raise SpecInvalid.of(
            {
                "captions": f"no training worker of {spec.family} has the weights of the captioner "
                f"({settings.captioner}); their logs say what is missing. Give captions, or set this to template"
            }
        )


def forget_dead(services: Services) -> None:
    """Delete workers that have not reported for a day."""
    with services.database.writing() as session:
        old = sa.delete(TrainingWorker).where(col(TrainingWorker.seen_at) < utcnow() - timedelta(days=1))
        session.connection().execute(old)


def _queue(base_model: str) -> str:
    return f"{TRAIN}{BASE_MODELS[base_model].family}" if base_model in BASE_MODELS else ""


def _rows(session: Session, worker: str) -> Sequence[TrainingWorker]:
    query = select(TrainingWorker).where(TrainingWorker.worker == worker)
    return session.exec(query.order_by(TrainingWorker.queue)).all()


def _view(rows: Sequence[TrainingWorker]) -> WorkerView:
    return WorkerView(
        worker=rows[0].worker,
        queues=[row.queue for row in rows],
        slots=rows[0].slots,
        device=rows[0].device,
        bases=sorted(name for row in rows for name, where in (row.bases or {}).items() if where == "here"),
        draining=any(row.draining for row in rows),
        alive=rows[0].seen_at > utcnow() - timedelta(seconds=ALIVE_S),
        seen_at=rows[0].seen_at,
    )
