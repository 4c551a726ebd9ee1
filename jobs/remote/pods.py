"""Rented pods: placing a training on one, following them, and closing those that are not needed.

    renting -> starting -> ready -> closing -> gone          a pod that is not gone may cost money

Without a RunPod key, and with a fixed server (`IMPRINT_AI_TOOLKIT_URL`), no pod is rented. Each placement is decided in
a transaction under one lock (`lock_pods`), so that any number of processes may place, check and reap at the same time.
"""

import logging
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.clock import utcnow
from core.errors import BackendFailed, BackendUnreachable
from jobs.owners import audit_log
from jobs.remote import pod_costs, pod_rental
from jobs.remote.pod_costs import lock_pods, runs_on_pod, share_out_cost
from jobs.remote.pod_rental import Assign
from jobs.services import Services
from storage.database import AWAY
from storage.tables.remote import PodState, RemoteRun, RentedPod, RunState
from training.backends.ai_toolkit.server import ToolkitServer
from training.backends.runpod import DEAD, Pod, RunPod
from training.spec import TrainSpec

log = logging.getLogger(__name__)

_AT_ONCE = 8  # pods that are checked in parallel
LOST = (PodState.CLOSING, PodState.GONE)
FIXED = "ai-toolkit"  # the name of the fixed server


@dataclass(frozen=True)
class PodPlacement:
    """Where a training may go. `pod` is None for the fixed server and where there is no place yet.

    `found` says whether there is one. Where not, `reason` says why in words for the owner, and the job waits and
    asks again; that is no attempt.
    """

    found: bool
    pod: RentedPod | None = None
    reason: str = ""


# ---- placing a training ---------------------------------------------------------------------------------------


def place(services: Services, spec: TrainSpec, assign: Assign) -> PodPlacement:
    """Find a server for a training: a pod with room, or a new pod within the ceilings.

    `assign(session, pod)` is called in the transaction that chose the pod. It must write the RemoteRun row with
    `pod_id=pod.id` (None: the fixed server): a run that has not ended takes up room on the pod and keeps it open. The
    pod may still be STARTING: submit once it is READY. This calls RunPod, so hold no session. Raises BackendFailed if
    waiting does not help, for example if RunPod rejects the key.
    """
    if services.settings.ai_toolkit_url:
        with services.database.writing() as session:
            assign(session, None)
        return PodPlacement(found=True)
    if services.runpod is None:
        raise BackendFailed(
            "no ai-toolkit server is configured: neither IMPRINT_AI_TOOLKIT_URL nor IMPRINT_RUNPOD_API_KEY is set"
        )
    needs = pod_rental.Needs.of(spec, services.settings)
    try:
        too_small = needs.too_small(services.runpod, services.settings.pod_gpus)
    except BackendUnreachable as error:
        return PodPlacement(found=False, reason=error.message)
    with services.database.writing() as session:
        lock_pods(session)
        if reason := pod_costs.reason_daily_ceiling_reached(session, services.settings):
            return PodPlacement(found=False, reason=reason)
        pod = _pod_with_room(session, services.settings.pod_jobs_max, spec.family, too_small)
        if pod is not None:
            share_out_cost(session, pod.id)
            pod.idle_since = None
            pod.family = " ".join(dict.fromkeys([*pod.family.split(), spec.family]))
            assign(session, pod)
            return PodPlacement(found=True, pod=pod)
        if reason := pod_rental.reason_not_to_rent(session, services.settings):
            return PodPlacement(found=False, reason=reason)
    pod, reason = pod_rental.rent(services, services.runpod, needs, assign, too_small)
    return PodPlacement(found=pod is not None, pod=pod, reason=reason)


def _pod_with_room(session: Session, most: int, family: str, too_small: Container[str]) -> RentedPod | None:
    """The best pod with room: one that answers, then a ready one, one that has the base model, the emptiest."""
    usable = select(RentedPod).where(col(RentedPod.state).in_((PodState.READY, PodState.STARTING)))
    loads = [(len(runs_on_pod(session, pod.id)), pod) for pod in session.exec(usable.order_by(col(RentedPod.id)))]
    fit = [(load, pod) for load, pod in loads if load < most and pod.gpu not in too_small]

    def rank(one: tuple[int, RentedPod]) -> tuple[bool, bool, bool, int]:
        load, pod = one
        return pod.missed > 0, pod.state != PodState.READY, family not in pod.family.split(), load

    return min(fit, key=rank)[1] if fit else None


def is_lost(pod: RentedPod | None) -> bool:
    """Whether a pod is gone or about to be deleted, so that its runs are lost."""
    return pod is not None and pod.state in LOST


def token_of(services: Services, pod: RentedPod) -> str:
    """The password of the pod's server, derived from the RunPod key and the pod's name."""
    return pod_rental.token_of(services.settings, pod.name)


def server_of(services: Services, pod_id: str | None) -> ToolkitServer:
    """The ai-toolkit server on a pod, or the fixed one where `pod_id` is None.

    Raises BackendUnreachable for a pod that is lost or has no address yet.
    """
    if pod_id is None:
        return server_at(services, None)
    with services.database.reading() as session:
        return server_at(services, session.get_one(RentedPod, pod_id))


def server_at(services: Services, pod: RentedPod | None) -> ToolkitServer:
    """The same for a row that is already loaded: without a query."""
    settings = services.settings
    if pod is None:
        if settings.ai_toolkit_url is None:
            raise BackendFailed("IMPRINT_AI_TOOLKIT_URL is no longer set")
        token = settings.ai_toolkit_token
        return ToolkitServer(settings.ai_toolkit_url, token.get_secret_value() if token else None, services.ai_toolkit)
    if pod.url is None or is_lost(pod):
        raise BackendUnreachable(f"pod {pod.name} is {pod.state}")
    return ToolkitServer(pod.url, token_of(services, pod), services.ai_toolkit)


def server_name(session: Session, run: RemoteRun) -> str | None:
    """The name of the run's server, for people; None before it has one."""
    pod = session.get(RentedPod, run.pod_id) if run.pod_id else None
    if pod is None:
        return FIXED if run.remote_id else None
    return pod.name


# ---- following the pods ---------------------------------------------------------------------------------------


def close(session: Session, pod_id: str, reason: str) -> bool:
    """Mark a pod for deletion by the next check, even if trainings are on it; False if it is closing already.

    For a pod that does not work, and for operators.
    """
    lock_pods(session)
    share_out_cost(session, pod_id)
    closed = sa.update(RentedPod).where(col(RentedPod.id) == pod_id, col(RentedPod.state).not_in(LOST))
    done = session.connection().execute(closed.values(state=PodState.CLOSING, reason=reason)).rowcount == 1
    if done:
        session.expire_all()
        audit_log.record(session, "pod.closed", pod_id=pod_id, reason=reason)
        log.info("pod %s is closing: %s", pod_id, reason)
    return done


def check(services: Services) -> None:
    """Check every pod that is not gone. The sweep calls this as often as it likes."""
    runpod = services.runpod
    if runpod is None:
        return
    with services.database.reading() as session:
        pods = list(session.exec(select(RentedPod).where(RentedPod.state != PodState.GONE)))
    if pods:
        try:
            listed = runpod.pods()
        except (BackendUnreachable, BackendFailed) as error:
            log.warning("pods are not checked: %s", error)
            return
        with ThreadPoolExecutor(min(len(pods), _AT_ONCE), "pods") as pool:
            list(pool.map(lambda pod: _try_to_look_after(services, runpod, pod, listed), pods))
    with services.database.writing() as session:
        _forget_old(session)


def _try_to_look_after(services: Services, runpod: RunPod, pod: RentedPod, listed: list[Pod]) -> None:
    try:
        _look_after(services, runpod, pod, listed)
    except (BackendUnreachable, BackendFailed) as error:
        log.warning("pod %s: %s", pod.name, error)  # the next check continues
    except AWAY:
        raise
    except Exception:  # one pod must not keep the others from being checked
        log.exception("pod %s could not be checked", pod.name)


def _look_after(services: Services, runpod: RunPod, pod: RentedPod, listed: list[Pod]) -> None:
    if pod.state == PodState.RENTING:
        pod_rental.resolve_order(services, runpod, pod, next((one for one in listed if one.name == pod.name), None))
        return
    if pod.state != PodState.CLOSING:
        found = next((one for one in listed if one.id == pod.provider_id), None) or runpod.get(pod.provider_id or "")
        if found is None or found.status in DEAD:
            reason = "RunPod no longer has it" if found is None else f"RunPod reports {found.status}"
        else:
            reason = _probe(services, pod)
        with services.database.writing() as session:
            lock_pods(session)
            reason = reason or _reason_idle(session, services, pod.id)
            if not reason or not close(session, pod.id, reason):
                return
    # By name too: the pod may have been closed while it was being rented.
    named = [one.id for one in listed if one.name == pod.name and one.status != "TERMINATED"]
    for provider_id in dict.fromkeys(filter(None, [pod.provider_id, *named])):
        runpod.delete(provider_id)
    with services.database.writing() as session:
        _write_off(session, pod.id)


def _probe(services: Services, pod: RentedPod) -> str:
    """Check whether a pod's server answers, and record it. Returns why the pod is given up, or empty."""
    settings, why = services.settings, "did not answer"
    try:
        answers = server_at(services, pod).ready()
    except BackendUnreachable:
        answers = False
    except BackendFailed as error:
        if error.details.get("status") == 401:  # the RunPod key has changed since; waiting does not help
            return error.message
        answers, why = False, "did not answer as ai-toolkit does"  # a proxy may answer before the server runs
    missed = 0 if answers else pod.missed + 1
    values: dict[str, object] = {"missed": missed if pod.state == PodState.READY else 0}
    if answers and pod.state == PodState.STARTING:
        values |= {"state": PodState.READY, "ready_at": utcnow()}
    with services.database.writing() as session:
        seen = sa.update(RentedPod).where(col(RentedPod.id) == pod.id, col(RentedPod.state) == pod.state)
        session.connection().execute(seen.values(**values))
    if answers:
        return ""
    if pod.state == PodState.READY:
        return f"its server {why} {missed} times in a row" if missed >= settings.remote_lost_polls else ""
    late = utcnow() - pod.created_at > timedelta(seconds=settings.pod_ready_s)
    return f"its server {why} within {settings.pod_ready_s:.0f} s" if late else ""


def _reason_idle(session: Session, services: Services, pod_id: str) -> str:
    """Record whether a pod is idle. Returns why it need not be kept, or empty. Needs the lock on pods."""
    share_out_cost(session, pod_id)
    pod = session.get_one(RentedPod, pod_id, populate_existing=True)
    if runs_on_pod(session, pod_id):
        pod.idle_since = None
        return ""
    pod.idle_since = pod.idle_since or utcnow()
    session.flush()
    if utcnow() - pod.idle_since >= timedelta(seconds=services.settings.pod_warm_s):
        return "idle"
    return pod_costs.reason_daily_ceiling_reached(session, services.settings)


def _write_off(session: Session, pod_id: str) -> None:
    """Record that the pod is deleted: it costs nothing from now on."""
    share_out_cost(session, pod_id)
    gone = sa.update(RentedPod).where(col(RentedPod.id) == pod_id, col(RentedPod.state) == PodState.CLOSING)
    session.connection().execute(gone.values(state=PodState.GONE, gone_at=col(RentedPod.accounted_at)))


def _forget_old(session: Session) -> None:
    """Mark ended runs on pods that are gone as cleared, and delete the rows of day-old orders that got no pod."""
    now, run = utcnow(), RemoteRun
    gone = sa.select(col(RentedPod.id)).where(col(RentedPod.state) == PodState.GONE)
    over = sa.update(run).where(col(run.state) == RunState.ENDED, col(run.cleared_at).is_(None))
    session.connection().execute(over.where(col(run.pod_id).in_(gone)).values(cleared_at=now))
    never = sa.delete(RentedPod).where(
        col(RentedPod.provider_id).is_(None), col(RentedPod.gone_at) < now - pod_costs.DAY
    )
    session.connection().execute(never)
