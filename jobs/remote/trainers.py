"""For operators: the remote servers and pods, and what they cost."""

from dataclasses import dataclass, replace
from datetime import datetime

from sqlmodel import col, select

from core.clock import utcnow
from core.errors import BackendFailed, BackendUnreachable
from jobs.remote import pod_costs, pods
from jobs.remote.pod_costs import cost, per_hour, runs_on_pod, spent_in_a_day
from jobs.services import Services
from storage.tables.remote import PodState, RentedPod
from training.backends.ai_toolkit.server import ToolkitServer
from training.backends.runpod import RunPod

_MICRO = 1_000_000


@dataclass(frozen=True)
class Trainer:
    """Something that trains, or rents what trains: a queue of local workers, a remote server, RunPod, a pod."""

    backend: str
    name: str
    health: str  # for people
    gpu: str | None = None
    queue: int | None = None  # how many trainings wait there
    dollars_per_hour: float | None = None


@dataclass(frozen=True)
class PodStatus:
    """A rented pod, and what it has cost."""

    name: str
    provider_id: str | None
    gpu: str
    state: str
    age_s: float
    idle_s: float | None
    dollars_per_hour: float
    dollars: float
    idle_dollars: float
    jobs: list[str]
    reason: str | None


@dataclass(frozen=True)
class Spending:
    """What pods cost now and in the last 24 hours, in dollars, beside the ceilings."""

    pods: int
    pods_max: int
    per_hour: float
    per_hour_max: float
    in_24_hours: float
    in_24_hours_max: float


def list_pods(services: Services, *, gone: bool = False) -> list[PodStatus]:
    """The pods that are not gone, oldest first; with `gone` also those deleted in the last 24 hours."""
    now = utcnow()
    with services.database.reading() as session:
        query = select(RentedPod).order_by(col(RentedPod.id))
        if gone:
            query = query.where(col(RentedPod.gone_at).is_(None) | (col(RentedPod.gone_at) > now - pod_costs.DAY))
        else:
            query = query.where(RentedPod.state != PodState.GONE)
        return [
            PodStatus(
                name=pod.name,
                provider_id=pod.provider_id,
                gpu=pod.gpu,
                state=str(pod.state),
                age_s=_seconds(pod.created_at, pod.gone_at or now),
                idle_s=None if pod.idle_since is None else _seconds(pod.idle_since, pod.gone_at or now),
                dollars_per_hour=pod.cost_microdollars_per_h / _MICRO,
                dollars=cost(pod, now) / _MICRO,
                idle_dollars=pod.idle_microdollars / _MICRO,
                jobs=[run.job_id for run in runs_on_pod(session, pod.id)],
                reason=pod.reason,
            )
            for pod in session.exec(query)
        ]


def spending(services: Services) -> Spending:
    """What pods cost, and the ceilings."""
    with services.database.reading() as session:
        live = list(session.exec(select(RentedPod).where(RentedPod.state != PodState.GONE)))
        return Spending(
            pods=len(live),
            pods_max=services.settings.pods_max,
            per_hour=per_hour(live) / _MICRO,
            per_hour_max=services.settings.spend_per_hour,
            in_24_hours=spent_in_a_day(session, utcnow()) / _MICRO,
            in_24_hours_max=services.settings.spend_per_day,
        )


def close_pod(services: Services, name: str) -> list[str] | None:
    """Delete a pod now, even if trainings are on it. Returns the jobs that were on it; None for an unknown pod."""
    with services.database.writing() as session:
        pod = session.exec(select(RentedPod).where(RentedPod.name == name)).one_or_none()
        if pod is None:
            return None
        jobs = [run.job_id for run in runs_on_pod(session, pod.id)]
        pods.close(session, pod.id, "closed by an operator")
    pods.check(services)
    return jobs


def list_trainers(services: Services) -> list[Trainer]:
    """The fixed server, or RunPod and the pods, each with its health now."""
    if services.settings.ai_toolkit_url:
        return [_ask(pods.server_at(services, None), Trainer("ai-toolkit", "ai-toolkit", ""))]
    if services.runpod is None:
        return []
    found = [_runpod(services, services.runpod)]
    with services.database.reading() as session:
        live = session.exec(select(RentedPod).where(RentedPod.state != PodState.GONE).order_by(col(RentedPod.id))).all()
    for pod in live:
        trainer = Trainer(
            "ai-toolkit", pod.name, str(pod.state), pod.gpu, dollars_per_hour=pod.cost_microdollars_per_h / _MICRO
        )
        is_ready = pod.state == PodState.READY
        found.append(_ask(pods.server_at(services, pod), trainer) if is_ready else trainer)
    return found


def _ask(server: ToolkitServer, trainer: Trainer) -> Trainer:
    """The trainer with what its server answers now."""
    try:
        if not server.ready():
            return replace(trainer, health="does not answer")
        cards = ", ".join(card.name for card in server.gpus()) or "no GPU"
        return replace(trainer, health="ready", gpu=trainer.gpu or cards, queue=server.queue_length())
    except (BackendUnreachable, BackendFailed) as error:
        return replace(trainer, health=error.message)


def _runpod(services: Services, runpod: RunPod) -> Trainer:
    """Whether RunPod answers, and which of the GPUs of IMPRINT_POD_GPUS are available."""
    try:
        catalogue = runpod.gpus()
    except (BackendUnreachable, BackendFailed) as error:
        return Trainer("ai-toolkit", "runpod", error.message)
    wanted = [catalogue[name] for name in services.settings.pod_gpus if name in catalogue]
    available = [f"{gpu.id} (${gpu.price_microdollars_per_h / _MICRO:.2f})" for gpu in wanted if gpu.available]
    spent = spending(services)
    health = (
        f"answers; {spent.pods} of {spent.pods_max} pods, ${spent.per_hour:.2f} of "
        f"${spent.per_hour_max:.2f} an hour, ${spent.in_24_hours:.2f} of ${spent.in_24_hours_max:.2f} in 24 h"
    )
    return Trainer("ai-toolkit", "runpod", health, ", ".join(available) or "none of IMPRINT_POD_GPUS is available now")


def _seconds(since: datetime, until: datetime) -> float:
    return round((until - since).total_seconds(), 1)
