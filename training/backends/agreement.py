"""How a job goes on that began elsewhere, or under other settings: as it began, or anew.

Half of a training in one way and half in another would be neither's, and a resume gives the bytes of one that was left
alone.
"""

import logging

import torch

from training.device import can_hold, precision
from training.engine.state import State
from training.ports import TrainRun

log = logging.getLogger(__name__)


def agreed_precision(
    run: TrainRun, device: torch.device, base_bytes: int, state: State | None
) -> tuple[torch.dtype, State | None]:
    """The precision of the base, and the state to go on from: a job that moved to another machine stays as it began."""
    wanted = precision(device, base_bytes, run.precision)
    if state is None or state.precision in ("", str(wanted).removeprefix("torch.")):
        return wanted, state
    began: torch.dtype = getattr(torch, state.precision)
    if run.precision == "auto" and can_hold(device, began):
        log.info("job %s goes on in %s, as it began; here it would be %s", run.job_id, began, wanted)
        return began, state
    why = f"{run.precision} is asked for" if run.precision != "auto" else f"{device} does not have that"
    log.warning("job %s begins anew: its checkpoint was trained in %s, and %s", run.job_id, state.precision, why)
    return wanted, None
