"""Renting one pod: first the row, then the call, then the pod's id. After a crash, the pod is found by its name.

A row in state `renting` is an order that may or may not have reached RunPod. Only the process that wrote it sends it.
The sweep looks for the name, and takes the pod over or gives the order up. So there is one order at a time, and a pod
that comes too late is deleted.
"""

import base64
import hashlib
import hmac
import logging
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.clock import utcnow
from core.errors import BackendFailed, BackendFull, BackendUnreachable
from core.ids import new_id
from core.settings import Settings
from jobs.owners import audit_log
from jobs.remote import pod_costs
from jobs.services import Services
from storage.tables.remote import PodState, RentedPod
from training.backends.ai_toolkit import cards
from training.backends.runpod import GpuType, Pod, PodRequest, RunPod
from training.spec import TrainSpec, base_model_location

log = logging.getLogger(__name__)

Assign = Callable[[Session, RentedPod | None], None]
# How long the sweep looks for the pod of an unanswered order. A slower sender finds the order given up.
ORDER_GRACE_S = 180.0
_EVERY_CARD_GIB = 20.0  # smaller cards are not worth renting
_DISK_LEFT_GB = 40  # for the image, the dataset and the outputs


def reason_not_to_rent(session: Session, settings: Settings) -> str:
    """Why no pod of any kind may be ordered now; empty if one may. Needs the lock on pods."""
    live = _live(session)
    if any(pod.state == PodState.RENTING for pod in live):
        return "a pod is being rented"
    if len(live) >= settings.pods_max:
        return f"all {settings.pods_max} pods that may be rented are full (IMPRINT_PODS_MAX)"
    return _recently_refused(session, settings)


@dataclass(frozen=True)
class Needs:
    """What a training needs of a pod."""

    family: str
    gib: float  # of the card, for ai-toolkit's defaults
    least_gib: float  # and with the base model in as few bits as it can be
    disk_gb: int

    @classmethod
    def of(cls, spec: TrainSpec, settings: Settings) -> "Needs":
        location = base_model_location(spec.base_model, settings.base_models)
        disk_gb = max(settings.pod_disk_gb, cards.disk_gb(spec.family) + _DISK_LEFT_GB)
        return cls(spec.family, cards.usual_gib(spec.family), cards.least_gib(spec.family, location), disk_gb)

    def too_small(self, runpod: RunPod, names: Sequence[str]) -> set[str]:
        """Which of these types of GPU the training does not go to: those on which it does not fit.

        Fewer bits than usual are for installations that rent no larger card. RunPod is asked only for families that
        need one. Raises BackendFailed if all are too small.
        """
        if self.least_gib <= _EVERY_CARD_GIB:
            return set()
        known = {gpu.id: gpu.memory_gb for gpu in runpod.gpus().values() if gpu.id in names}
        if known and max(known.values()) < self.least_gib:
            raise BackendFailed(
                f"{self.family} needs a GPU with {self.least_gib:.0f} GB, and none of IMPRINT_POD_GPUS has as much"
            )
        gib = self.gib if max(known.values(), default=0) >= self.gib else self.least_gib
        return {name for name, memory in known.items() if memory < gib}


def rent(
    services: Services, runpod: RunPod, needs: Needs, assign: Assign, too_small: Container[str] = ()
) -> tuple[RentedPod | None, str]:
    """Rent a pod for a training, with a GPU that is not `too_small`. Returns the pod and "", or None and why not.

    `assign` is called in the transaction that makes the pod usable. Raises BackendFailed if RunPod rejects the key, the
    template or the types of GPU.
    """
    try:
        catalogue = runpod.gpus()
    except BackendUnreachable as error:
        return None, error.message
    pod_id, reasons = new_id("pod"), []
    for name in services.settings.pod_gpus:
        if name in too_small:
            continue
        gpu = catalogue.get(name)
        reason = "is not in RunPod's catalogue" if gpu is None else "" if gpu.available else "is not available now"
        if gpu is None or reason:
            reasons.append(f"{name} {reason}")
            continue
        row, reason, final = _order(services, pod_id, gpu, needs.family)
        if row is None and final:
            return None, reason
        if row is None:
            reasons.append(reason)
            continue
        try:
            found = runpod.create(_order_of(services, row, needs.disk_gb))
        except BackendFull as error:
            reasons.append(f"{name}: {error.message}")
            if error.details.get("status") == 402:
                break
        except BackendUnreachable as error:
            return None, error.message  # the pod may exist: the sweep looks for its name
        except BackendFailed as error:
            _give_up(services, pod_id, error.message)
            raise
        else:
            pod = take_over(services, runpod, pod_id, found, assign)
            return pod, "" if pod else "the order for a pod was given up"
    reason = "; ".join(dict.fromkeys(reasons)) or "IMPRINT_POD_GPUS names no type of GPU"
    _give_up(services, pod_id, reason)
    return None, reason


def take_over(
    services: Services, runpod: RunPod, pod_id: str, found: Pod, assign: Assign | None = None
) -> RentedPod | None:
    """Record the pod of an order. None if the order was given up: then the pod is deleted."""
    with services.database.writing() as session:
        pod_costs.lock_pods(session)
        pod = session.get(RentedPod, pod_id, populate_existing=True)
        if pod is not None and pod.state == PodState.RENTING:
            pod.state, pod.provider_id, pod.idle_since = PodState.STARTING, found.id, utcnow()
            pod.url = services.settings.pod_proxy.format(pod_id=found.id)
            pod.cost_microdollars_per_h = found.cost_microdollars_per_h or pod.cost_microdollars_per_h
            audit_log.record(session, "pod.rented", pod_id=pod_id, gpu=pod.gpu)
            log.info("rented pod %s (%s, %s)", pod.name, pod.gpu, found.id)
        if pod is not None and pod.provider_id == found.id and pod.state in (PodState.STARTING, PodState.READY):
            if assign is not None:  # None: the sweep was faster than the sender
                pod.idle_since = None
                session.flush()
                assign(session, pod)
            return pod
    log.warning("pod %s came too late and is deleted", found.name)
    runpod.delete(found.id)
    return None


def resolve_order(services: Services, runpod: RunPod, pod: RentedPod, found: Pod | None) -> None:
    """Resolve an unanswered order: take over the pod found by its name, or give the order up after a while."""
    if found is not None:
        take_over(services, runpod, pod.id, found)
    elif utcnow() - pod.asked_at > timedelta(seconds=ORDER_GRACE_S):
        _give_up(services, pod.id, "RunPod has not created this pod")


def token_of(settings: Settings, name: str) -> str:
    """The password of a pod's server. It is derived, so that it is stored nowhere and survives a restored database."""
    key = settings.runpod_api_key
    if key is None:
        raise BackendFailed("the passwords of rented pods are derived from IMPRINT_RUNPOD_API_KEY, which is not set")
    mark = hmac.new(key.get_secret_value().encode(), f"imprint pod {name}".encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(mark).decode().rstrip("=")  # without spaces: ai-toolkit splits at them


def _order(services: Services, pod_id: str, gpu: GpuType, family: str) -> tuple[RentedPod | None, str, bool]:
    """Write the order's row, or change its GPU. Else None, why not, and whether that applies to every type of GPU."""
    settings = services.settings
    with services.database.writing() as session:
        pod_costs.lock_pods(session)
        pod = session.get(RentedPod, pod_id, populate_existing=True)
        if pod is None and (reason := reason_not_to_rent(session, settings)):
            return None, reason, True
        if pod is not None and pod.state != PodState.RENTING:
            return None, "the order for a pod was given up", True
        price = max(gpu.price_microdollars_per_h, _last_paid(session, gpu.id))
        others = [other for other in _live(session) if other.id != pod_id]
        if reason := pod_costs.reason_too_expensive(session, settings, others, price):
            return None, f"{gpu.id}: {reason}", False
        pod = pod or RentedPod(id=pod_id, name=f"{settings.pod_prefix}-{pod_id}", family=family)
        pod.gpu, pod.cost_microdollars_per_h, pod.asked_at = gpu.id, price, utcnow()
        session.add(pod)
    return pod, "", False


def _order_of(services: Services, pod: RentedPod, disk_gb: int) -> PodRequest:
    settings = services.settings
    env = {"AI_TOOLKIT_AUTH": token_of(settings, pod.name)}
    if settings.hf_token is not None:
        env["HF_TOKEN"] = settings.hf_token.get_secret_value()
    image = None if settings.pod_template else settings.pod_image
    return PodRequest(pod.name, pod.gpu, disk_gb, env, image=image, template=settings.pod_template)


def _give_up(services: Services, pod_id: str, reason: str) -> None:
    """End an order that got no pod. Its row is kept for a while and says why."""
    with services.database.writing() as session:
        session.connection().execute(
            sa.update(RentedPod)
            .where(col(RentedPod.id) == pod_id, col(RentedPod.state) == PodState.RENTING)
            .values(state=PodState.GONE, gone_at=utcnow(), reason=reason)
        )
    log.warning("no pod was rented: %s", reason)


def _live(session: Session) -> list[RentedPod]:
    return list(session.exec(select(RentedPod).where(RentedPod.state != PodState.GONE)))


def _recently_refused(session: Session, settings: Settings) -> str:
    """Why the newest order got no pod, if that was just now: so a hundred waiting jobs call RunPod once."""
    since: datetime = utcnow() - timedelta(seconds=settings.remote_poll_s)
    query = (
        select(RentedPod.reason)
        .where(col(RentedPod.provider_id).is_(None), col(RentedPod.gone_at) > since)
        .order_by(col(RentedPod.gone_at).desc())
        .limit(1)
    )
    return session.exec(query).first() or ""


def _last_paid(session: Session, gpu: str) -> int:
    """The hourly price of the last pod with that GPU; RunPod's list may be lower."""
    query = (
        select(RentedPod.cost_microdollars_per_h)
        .where(RentedPod.gpu == gpu, col(RentedPod.provider_id).is_not(None))
        .order_by(col(RentedPod.created_at).desc())
        .limit(1)
    )
    return session.exec(query).first() or 0
