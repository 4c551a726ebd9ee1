"""What rented pods cost: the ceilings that renting keeps to, and which training bears what.

A pod costs its hourly price from the moment it was asked for until it is gone: a little more than RunPod bills, never
less. The pod's time is shared out between two looks at it:

- to the trainings that run on it, evenly (ai-toolkit runs one after another, so that is one);
- while none runs, to those that wait on it: start-up is borne by those for whom it was started;
- while there are none, to nobody: the time for which a pod is kept warm stands in `idle_microdollars` of the pod.

So the costs of all trainings on a pod and its idle cost are what the pod cost, to the microdollar.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.clock import utcnow
from core.settings import Settings
from storage.tables import PodState, RemoteRun, RentedPod, RunState
from training.backends.ai_toolkit.answers import RUNNING

_MICRO = 1_000_000
_PODS_LOCK = 0x1389_72  # any number, the same in every process: PostgreSQL's advisory lock for pods
DAY = timedelta(hours=24)


def lock_pods(session: Session) -> None:
    """Until the transaction's end nobody else decides about pods. On SQLite every writer has that lock."""
    if session.get_bind().dialect.name != "sqlite":
        session.connection().execute(sa.text("SELECT pg_advisory_xact_lock(:k)"), {"k": _PODS_LOCK})


def cost(pod: RentedPod, now: datetime, since: datetime | None = None) -> int:
    """What the pod cost until `now` (and since `since`), in microdollars. One that was never had cost nothing."""
    if pod.state == PodState.GONE and pod.provider_id is None:
        return 0
    begun = max(pod.created_at, since) if since else pod.created_at
    return _share(pod, min(pod.gone_at or now, now) - begun)


def per_hour(pods: Iterable[RentedPod]) -> int:
    """What these pods cost in an hour, in microdollars, of those that are not gone."""
    return sum(pod.cost_microdollars_per_h for pod in pods if pod.state != PodState.GONE)


def spent_in_a_day(session: Session, now: datetime) -> int:
    """What all pods cost in the last 24 hours, in microdollars."""
    query = select(RentedPod).where(sa.or_(col(RentedPod.gone_at).is_(None), col(RentedPod.gone_at) > now - DAY))
    return sum(cost(pod, now, since=now - DAY) for pod in session.exec(query))


def reason_daily_ceiling_reached(session: Session, settings: Settings) -> str:
    """Why nothing more may be spent today, in words; empty while it may."""
    if spent_in_a_day(session, utcnow()) < round(settings.spend_per_day * _MICRO):
        return ""
    return f"the ceiling of {dollars(round(settings.spend_per_day * _MICRO))} on pods in 24 hours is reached"


def reason_too_expensive(session: Session, settings: Settings, live: Iterable[RentedPod], price: int) -> str:
    """Why a pod of this hourly price may not be rented beside the `live` ones, in words; empty where it may.

    For the day another hour of every pod is counted in advance, so that none is rented that would have to go at once.
    """
    hourly, daily = round(settings.spend_per_hour * _MICRO), round(settings.spend_per_day * _MICRO)
    in_an_hour = per_hour(live) + price
    if in_an_hour > hourly:
        return f"another pod ({dollars(price)} an hour) would pass the ceiling of {dollars(hourly)} an hour"
    if spent_in_a_day(session, utcnow()) + in_an_hour > daily:
        return f"another pod ({dollars(price)} an hour) would pass the ceiling of {dollars(daily)} in 24 hours"
    return ""


def runs_on_pod(session: Session, pod_id: str) -> list[RemoteRun]:
    """The trainings that have their place on a pod: all that have not ended."""
    query = select(RemoteRun).where(RemoteRun.pod_id == pod_id, RemoteRun.state != RunState.ENDED)
    return list(session.exec(query.order_by(col(RemoteRun.created_at), col(RemoteRun.job_id))))


def share_out_cost(session: Session, pod_id: str | None) -> None:
    """Share out what the pod cost since last time. Call it in the transaction in which a run changes its state or
    pod, before the change is written; the sweep calls it as well. None, the fixed server, costs nothing.
    """
    if pod_id is None:
        return
    query = select(RentedPod).where(RentedPod.id == pod_id).with_for_update(key_share=True)
    pod = session.exec(query.execution_options(populate_existing=True)).one_or_none()
    if pod is None:
        return
    until = max(min(pod.gone_at or utcnow(), utcnow()), pod.accounted_at)
    amount = _share(pod, until - pod.accounted_at)
    pod.accounted_at = until
    runs = runs_on_pod(session, pod_id)
    bearers = [run for run in runs if run.status == RUNNING] or runs
    if not bearers:
        pod.idle_microdollars += amount
    for number, run in enumerate(bearers):
        part = amount // len(bearers) + (number < amount % len(bearers))
        session.connection().execute(
            sa.update(RemoteRun)
            .where(col(RemoteRun.job_id) == run.job_id, col(RemoteRun.attempt) == run.attempt)
            .values(cost_microdollars=col(RemoteRun.cost_microdollars) + part)
        )
    session.flush()


def dollars(microdollars: int) -> str:
    """For people: cents, and more digits where cents say nothing."""
    return f"${microdollars / _MICRO:.{2 if microdollars >= 100_000 or not microdollars else 4}f}"


def _share(pod: RentedPod, time: timedelta) -> int:
    return max(pod.cost_microdollars_per_h * (time // timedelta(microseconds=1)) // (3600 * _MICRO), 0)
