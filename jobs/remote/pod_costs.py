"""What rented pods cost: the spending ceilings, and how costs are shared among trainings.

A pod costs its hourly price from the request to rent it until it is gone: a little more than RunPod bills, never less.
The cost between two accountings is shared:

- evenly among the trainings that run on the pod (ai-toolkit runs one at a time, so that is one);
- if none runs, among those that wait on it: they pay for the start of the pod;
- if none waits either, it is added to the pod's `idle_microdollars`: the time for which it is kept warm.

So the costs of a pod's trainings and its idle cost add up to the cost of the pod, to the microdollar.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.clock import utcnow
from core.settings import Settings
from storage.tables.remote import PodState, RemoteRun, RentedPod, RunState
from training.backends.ai_toolkit.answers import RUNNING

_MICRO = 1_000_000
_PODS_LOCK = 0x1389_72  # any number, the same in every process: PostgreSQL's advisory lock for pods
DAY = timedelta(hours=24)


def lock_pods(session: Session) -> None:
    """Take the lock on decisions about pods until the transaction ends. On SQLite every writer has it."""
    if session.get_bind().dialect.name != "sqlite":
        session.connection().execute(sa.text("SELECT pg_advisory_xact_lock(:k)"), {"k": _PODS_LOCK})


def cost(pod: RentedPod, now: datetime, since: datetime | None = None) -> int:
    """What a pod cost until `now` (from `since` on), in microdollars. A pod that was never rented cost nothing."""
    if pod.state == PodState.GONE and pod.provider_id is None:
        return 0
    begun = max(pod.created_at, since) if since else pod.created_at
    return _share(pod, min(pod.gone_at or now, now) - begun)


def per_hour(pods: Iterable[RentedPod]) -> int:
    """What those of the pods that are not gone cost per hour, in microdollars."""
    return sum(pod.cost_microdollars_per_h for pod in pods if pod.state != PodState.GONE)


def spent_in_a_day(session: Session, now: datetime) -> int:
    """What all pods cost in the last 24 hours, in microdollars."""
    query = select(RentedPod).where(sa.or_(col(RentedPod.gone_at).is_(None), col(RentedPod.gone_at) > now - DAY))
    return sum(cost(pod, now, since=now - DAY) for pod in session.exec(query))


def reason_daily_ceiling_reached(session: Session, settings: Settings) -> str:
    """Why no more may be spent in these 24 hours; empty if more may be spent."""
    if spent_in_a_day(session, utcnow()) < round(settings.spend_per_day * _MICRO):
        return ""
    return f"the ceiling of {dollars(round(settings.spend_per_day * _MICRO))} for pods in 24 hours is reached"


def reason_too_expensive(session: Session, settings: Settings, live: Iterable[RentedPod], price: int) -> str:
    """Why a pod with this hourly price may not be rented in addition to the `live` ones; empty if it may.

    The daily ceiling counts another hour of every pod in advance, so that no pod is rented that must end at once.
    """
    hourly, daily = round(settings.spend_per_hour * _MICRO), round(settings.spend_per_day * _MICRO)
    in_an_hour = per_hour(live) + price
    if in_an_hour > hourly:
        return f"another pod ({dollars(price)} an hour) would exceed the ceiling of {dollars(hourly)} an hour"
    if spent_in_a_day(session, utcnow()) + in_an_hour > daily:
        return f"another pod ({dollars(price)} an hour) would exceed the ceiling of {dollars(daily)} in 24 hours"
    return ""


def runs_on_pod(session: Session, pod_id: str) -> list[RemoteRun]:
    """The runs on a pod that have not ended."""
    query = select(RemoteRun).where(RemoteRun.pod_id == pod_id, RemoteRun.state != RunState.ENDED)
    return list(session.exec(query.order_by(col(RemoteRun.created_at), col(RemoteRun.job_id))))


def share_out_cost(session: Session, pod_id: str | None) -> None:
    """Share the pod's cost since the last accounting. Call it in the transaction in which a run changes its state or
    pod, before the change is written; the sweep calls it too. None, the fixed server, costs nothing.
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
    """An amount for people: in cents, with more digits if it is small."""
    return f"${microdollars / _MICRO:.{2 if microdollars >= 100_000 or not microdollars else 4}f}"


def _share(pod: RentedPod, time: timedelta) -> int:
    return max(pod.cost_microdollars_per_h * (time // timedelta(microseconds=1)) // (3600 * _MICRO), 0)
