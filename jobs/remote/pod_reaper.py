"""The reaper: deletes the pods at the provider that no row needs, including those that the database does not know."""

import logging
import re
from functools import partial

from sqlmodel import select

from core.clock import utcnow
from core.errors import BackendFailed, BackendUnreachable
from core.ids import made_at
from jobs.lifecycle.periodic import each
from jobs.notices import notices
from jobs.owners import audit_log
from jobs.services import Services
from storage.tables.remote import PodState, RentedPod
from training.backends.runpod import Pod, RunPod

log = logging.getLogger(__name__)

# A pod with our prefix that the database does not know is kept this long after its name was made.
STRANGER_GRACE_S = 600.0


def reap(services: Services) -> int:
    """Delete every pod at the provider that has our prefix and that no live row needs. Returns how many.

    This includes pods that the database does not know, for example after a restore from a back-up. So two installations
    that share an account need different prefixes.
    """
    runpod = services.runpod
    if runpod is None:
        return 0
    try:
        listed = runpod.pods()
    except (BackendUnreachable, BackendFailed) as error:
        log.warning("unneeded pods are not deleted: %s", error)
        return 0
    return sum(each("reap", listed, partial(_reap_one, services, runpod)))


def _reap_one(services: Services, runpod: RunPod, pod: Pod) -> bool:
    """Delete a pod that is not needed. Returns whether it was deleted."""
    why = _superfluous(services, pod) if pod.status != "TERMINATED" else ""
    if not why:
        return False
    log.warning("pod %s (%s) is deleted: %s", pod.name, pod.id, why)
    try:
        runpod.delete(pod.id)
    except (BackendUnreachable, BackendFailed) as error:
        log.warning("pod %s could not be deleted: %s", pod.name, error)
        notices.alert(services, "pod", f"pod {pod.name} could not be deleted and may cost money: {error}")
        return False
    with services.database.writing() as session:
        audit_log.record(session, "pod.deleted", pod=pod.name, provider_id=pod.id, reason=why)
    return True


def _superfluous(services: Services, pod: Pod) -> str:
    """Why a pod is not needed; empty if it is, or if its name is not ours.

    The row is written before the pod is requested and read after the pods are listed, so a pending request is known.
    """
    mark = re.fullmatch(rf"{services.settings.pod_prefix}-(pod_[0-9a-z]{{26}})", pod.name)
    made = made_at(mark[1]) if mark else None
    if made is None:
        return ""
    with services.database.reading() as session:
        row = session.exec(select(RentedPod).where(RentedPod.name == pod.name)).one_or_none()
    if row is None:
        return "no row names it" if (utcnow() - made).total_seconds() > STRANGER_GRACE_S else ""
    if row.state == PodState.GONE:
        return "it should be gone"
    if row.provider_id not in (None, pod.id):
        return "it was created twice"
    return ""
