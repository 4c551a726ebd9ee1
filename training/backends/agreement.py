"""How a job goes on that began elsewhere, or under other settings: as it began, or anew.

Half of a training in one way and half in another would be neither's, and a resume gives the bytes of one that was left
alone.
"""

import logging
from pathlib import Path

import torch

from training.backends.checkpoint import State
from training.device import can_hold, precision
from training.engine.compiler import compiler
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


def agreed_compiled(run: TrainRun, device: torch.device, state: State | None) -> tuple[Path | None, State | None]:
    """Where compiled code is kept, None to run without; and the state to go on from. Every machine can run without."""
    able = compiler(run.compiled, device) is not None
    if state is None or state.compiled == able:
        return run.compiled if able else None, state
    if able:
        log.info("job %s goes on without compiled code, as it began", run.job_id)
        return None, state
    why = "this machine cannot compile" if run.compiled is not None else "IMPRINT_COMPILE is off"
    log.warning("job %s begins anew: its checkpoint was trained with compiled code, and %s", run.job_id, why)
    return None, None
