"""What a training would cost, how long it would take, and the memory it would need."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.settings import Settings
from credits import ledger
from credits.price import price_of_part, price_per_step
from jobs.admission.live import live_devices
from jobs.admission.queues import queue_of
from jobs.requests import training_request
from jobs.requests.prices import credits_for, rate_of, work_of_step
from jobs.services import Services
from storage.tables.jobs import Job, Status
from storage.tables.remote import PodState, RentedPod
from training import memory_plan
from training.families.registry import FAMILIES
from training.spec import TrainSpec, licence_of


@dataclass(frozen=True)
class Quote:
    """What a training would cost and how long it would take.

    Cancelling before the first step costs nothing; after that the steps done cost `credits_per_step`, rounded down.
    """

    credits: int
    credits_per_step: float
    cancelled_half_way: int  # credits charged if it is cancelled after half of its steps
    available: int
    steps: int
    seconds: float
    measured: bool  # whether `seconds` is based on trainings that finished here, on the devices that train now
    # The least GiB of GPU memory it needs: with gradient checkpointing, the base in 16 bits. None: it trains only on
    # rented GPUs.
    memory_gb: float | None
    licence: str | None  # of the base model, with what it forbids; None: unknown


def quote(services: Services, arguments: Mapping[str, Any]) -> Quote:
    """Price and duration of a request; nothing is started. Raises SpecInvalid."""
    request = training_request.parse(arguments, services.settings, services.sources)
    steps = request.spec.steps(len(request.envelope.images))
    spec = request.spec
    rate = rate_of(spec, services.settings)
    with services.database.reading() as session:
        seconds_per_step = _measured(session, spec)
        pod_start_s = _pod_start_s(session, services.settings, request.spec)
        available = ledger.balance(session, request.envelope.owner_id).available
    return Quote(
        credits=credits_for(spec, steps, services.settings),
        credits_per_step=float(price_per_step(rate, spec.resolution)),
        cancelled_half_way=price_of_part(rate, steps // 2, spec.resolution),
        available=available,
        steps=steps,
        seconds=round(pod_start_s + steps * (seconds_per_step or _guessed(spec)), 1),
        measured=seconds_per_step is not None,
        memory_gb=_memory_gb(spec),
        licence=licence_of(spec.base_model),
    )


def expected_seconds(session: Session, spec: TrainSpec, steps: int) -> float:
    """How long the train stage of a job will take, as far as it is known."""
    return steps * (_measured(session, spec) or _guessed(spec))


def _guessed(spec: TrainSpec) -> float:
    """Seconds per step on one consumer GPU."""
    return FAMILIES[spec.family].seconds_per_step * work_of_step(spec)


def _memory_gb(spec: TrainSpec) -> float | None:
    if FAMILIES[spec.family].sizes is None:
        return None
    return round(memory_plan.needed(spec, checkpointing=True) / memory_plan.GIB, 1)


def _measured(session: Session, spec: TrainSpec) -> float | None:
    """Seconds per step of trainings like this one: on the slowest of the live devices that have trained one.

    Without a live worker, and for remote servers, of the newest ones on whatever they were trained.
    """
    devices = live_devices(session, queue_of(spec)) if spec.backend == "local" else ()
    found = [rate for device in devices if (rate := _median(session, spec, col(Job.device) == device)) is not None]
    if found:
        return max(found)
    # Before devices were recorded, installations had one kind of worker.
    return _median(session, spec, col(Job.device) == "" if devices else sa.true())


def _median(session: Session, spec: TrainSpec, condition: Any) -> float | None:
    """Median seconds per step of the newest 9 trainings with this family, backend, resolution and batch size.

    Those of trainings that also trained text encoders, or did not, are converted by the work of a step.
    """
    rows = session.exec(
        select(Job.seconds_per_step, Job.spec)
        .where(Job.status == Status.READY, col(Job.seconds_per_step).is_not(None), condition)
        .where(Job.family == spec.family, Job.backend == spec.backend)
        .where(Job.resolution == spec.resolution, Job.batch_size == spec.batch_size)
        .order_by(col(Job.finished_at).desc())
        .limit(9)
    ).all()
    with_text = [bool((stored.get("adapter") or {}).get("text_encoder")) for _, stored in rows]
    work = {on: work_of_step(spec.model_copy(update={"adapter": spec.adapter.model_copy(update={"text_encoder": on})}))
            for on in set(with_text)}  # fmt: skip
    seconds = sorted(
        row * work_of_step(spec) / work[on] for (row, _), on in zip(rows, with_text, strict=True) if row is not None
    )
    return seconds[len(seconds) // 2] if seconds else None


def _pod_start_s(session: Session, settings: Settings, spec: TrainSpec) -> float:
    """How long a training waits for a rented pod, as the last ones did; 0 if one is ready, or none was rented."""
    if spec.backend == "local" or settings.ai_toolkit_url or settings.runpod_api_key is None:
        return 0.0
    if session.exec(select(RentedPod.id).where(RentedPod.state == PodState.READY).limit(1)).first() is not None:
        return 0.0
    started = select(RentedPod).where(col(RentedPod.ready_at).is_not(None)).order_by(col(RentedPod.created_at).desc())
    waits = sorted(
        (pod.ready_at - pod.created_at).total_seconds() for pod in session.exec(started.limit(9)) if pod.ready_at
    )
    return waits[len(waits) // 2] if waits else 0.0
