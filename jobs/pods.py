"""Rented machines: a place for a training, what they cost, and that none is left running.

Nothing happens here without a RunPod key, and with a fixed server (`IMPRINT_AI_TOOLKIT_URL`) no pod is rented.
Every decision about who goes where is made in a transaction under one lock (`lock_pods`), so that any number of
processes may place, check and reap at the same time.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sqlmodel import Session

from jobs.wiring import House
from storage.tables import RentedPod
from training.backends.ai_toolkit.server import Server
from training.spec import TrainSpec


@dataclass(frozen=True)
class Place:
    """Where a training may go. `pod` is None for the fixed server and where there is no place yet.

    `found` says whether there is one. Where not, `reason` says why in words for the owner, and the job waits and
    asks again; that is no attempt.
    """

    found: bool
    pod: RentedPod | None = None
    reason: str = ""


def place(house: House, spec: TrainSpec, assign: Callable[[Session, RentedPod | None], None]) -> Place:
    """Find a training its server: a pod with room, else a new one within the ceilings.

    `assign(session, pod)` is called inside the transaction that chose the pod and must write the RemoteRun row with
    `pod_id=pod.id` there (None: the fixed server): a run that is not ENDED is what takes up room and keeps a pod
    from being closed. The pod may still be STARTING: submit once it is READY. Calls RunPod, so hold no session.
    Raises BackendFailed for what waiting does not help: a key or a template that RunPod does not take.
    """
    raise NotImplementedError


def account(session: Session, pod_id: str | None) -> None:
    """Share out what the pod cost since last time among the runs on it; call it right before a run changes state.

    Adds to `remote_run.cost_microdollars`. None (the fixed server) costs nothing.
    """
    raise NotImplementedError


def is_lost(pod: RentedPod | None) -> bool:
    """Whether what runs on this pod is lost: it is gone, or about to be deleted; it is tried again elsewhere."""
    raise NotImplementedError


def check(house: House) -> None:
    """Look after every pod that is not gone; what the sweep calls, as often as it likes."""
    raise NotImplementedError


def reap(house: House) -> int:
    """Delete every pod at the provider that has our prefix and that no live row needs. Gives how many."""
    raise NotImplementedError


def token_of(house: House, pod: RentedPod) -> str:
    """The password of the pod's server: derived from the RunPod key and the pod's name, stored nowhere."""
    raise NotImplementedError


def server_of(house: House, pod_id: str | None) -> Server:
    """The ai-toolkit server on a pod, or the fixed one where `pod_id` is None; one for each in this process.

    Raises BackendUnreachable for a pod that is lost or has no address yet.
    """
    raise NotImplementedError
