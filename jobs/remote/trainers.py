"""What there is to train on beyond this machine's workers, for operators: servers, pods, and what they cost."""

from datetime import datetime
from typing import Any

from sqlmodel import col, select

from core.clock import utcnow
from core.errors import BackendFailed, BackendUnreachable
from jobs.remote import pod_costs, pods
from jobs.remote.pod_costs import cost, on_pod, per_hour, spent_in_a_day
from jobs.services import Services
from storage.tables import PodState, RentedPod
from training.backends.ai_toolkit.server import ToolkitServer
from training.backends.runpod import RunPod

_MICRO = 1_000_000


def rented(services: Services, *, gone: bool = False) -> list[dict[str, Any]]:
    """The pods that are not gone, oldest first; with `gone` also those of the last 24 hours."""
    now = utcnow()
    with services.database.reading() as session:
        query = select(RentedPod).order_by(col(RentedPod.id))
        if gone:
            query = query.where(col(RentedPod.gone_at).is_(None) | (col(RentedPod.gone_at) > now - pod_costs.DAY))
        else:
            query = query.where(RentedPod.state != PodState.GONE)
        return [
            {
                "name": pod.name,
                "provider_id": pod.provider_id,
                "gpu": pod.gpu,
                "state": str(pod.state),
                "age_s": _seconds(pod.created_at, pod.gone_at or now),
                "idle_s": _seconds(pod.idle_since, pod.gone_at or now),
                "dollars_per_hour": pod.cost_microdollars_per_h / _MICRO,
                "dollars": cost(pod, now) / _MICRO,
                "idle_dollars": pod.idle_microdollars / _MICRO,
                "jobs": [run.job_id for run in on_pod(session, pod.id)],
                "reason": pod.reason,
            }
            for pod in session.exec(query)
        ]


def spending(services: Services) -> dict[str, float | int]:
    """What pods cost now and in the last 24 hours, in dollars, beside the ceilings."""
    with services.database.reading() as session:
        live = list(session.exec(select(RentedPod).where(RentedPod.state != PodState.GONE)))
        return {
            "pods": len(live),
            "pods_max": services.settings.pods_max,
            "per_hour": per_hour(live) / _MICRO,
            "per_hour_max": services.settings.spend_per_hour,
            "in_24_hours": spent_in_a_day(session, utcnow()) / _MICRO,
            "in_24_hours_max": services.settings.spend_per_day,
        }


def close(services: Services, name: str) -> list[str] | None:
    """Have a pod deleted, whatever is on it, now; gives the jobs that lose their place, None for an unknown pod."""
    with services.database.writing() as session:
        pod = session.exec(select(RentedPod).where(RentedPod.name == name)).one_or_none()
        if pod is None:
            return None
        jobs = [run.job_id for run in on_pod(session, pod.id)]
        pods.close(session, pod.id, "closed by an operator")
    pods.check(services)
    return jobs


def remote(services: Services) -> list[dict[str, Any]]:
    """The fixed server, or RunPod and the pods, each asked now how it is."""
    if services.settings.ai_toolkit_url:
        return [_told("ai-toolkit", None) | _asked(pods.server_at(services, None))]
    if services.runpod is None:
        return []
    found = [_told("runpod", None) | _account(services, services.runpod)]
    with services.database.reading() as session:
        live = session.exec(select(RentedPod).where(RentedPod.state != PodState.GONE).order_by(col(RentedPod.id))).all()
    for pod in live:
        row = _told(pod.name, pod.cost_microdollars_per_h / _MICRO) | {"gpu": pod.gpu, "health": str(pod.state)}
        found.append(row | _asked(pods.server_at(services, pod), pod.gpu) if pod.state == PodState.READY else row)
    return found


def _told(name: str, dollars_per_hour: float | None) -> dict[str, Any]:
    return {"backend": "ai-toolkit", "name": name, "dollars_per_hour": dollars_per_hour, "queue": None, "gpu": None}


def _asked(server: ToolkitServer, gpu: str | None = None) -> dict[str, Any]:
    try:
        if not server.ready():
            return {"health": "does not answer"}
        cards = ", ".join(card.name for card in server.gpus()) or "no GPU"
        return {"health": "ready", "gpu": gpu or cards, "queue": server.queue_length()}
    except (BackendUnreachable, BackendFailed) as error:
        return {"health": error.message}


def _account(services: Services, runpod: RunPod) -> dict[str, Any]:
    """RunPod's side: whether it answers, and which of the GPUs that we would take it has now."""
    try:
        catalogue = runpod.gpus()
    except (BackendUnreachable, BackendFailed) as error:
        return {"health": error.message}
    wanted = [catalogue[name] for name in services.settings.pod_gpus if name in catalogue]
    there = [f"{gpu.id} (${gpu.price_microdollars_per_h / _MICRO:.2f})" for gpu in wanted if gpu.available]
    spent = spending(services)
    health = (
        f"answers; {spent['pods']} of {spent['pods_max']} pods, ${spent['per_hour']:.2f} of "
        f"${spent['per_hour_max']:.2f} an hour, ${spent['in_24_hours']:.2f} of ${spent['in_24_hours_max']:.2f} in 24 h"
    )
    return {"health": health, "gpu": ", ".join(there) or "none of IMPRINT_POD_GPUS is to be had now"}


def _seconds(since: datetime | None, until: datetime) -> float | None:
    return None if since is None else round((until - since).total_seconds(), 1)
