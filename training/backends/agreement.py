"""How a job goes on that began elsewhere, or under other settings: as it began, or anew.

Half of a training in one way and half in another would be neither's, and a resume gives the bytes of one that was left
alone.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from training.device import can_hold, precision
from training.engine.state import State
from training.families.quantised import is_available
from training.memory_plan import QUANTISATIONS
from training.options import Quantisation
from training.ports import TrainRun

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Agreement:
    """How a base is held, and the state to go on from."""

    dtype: torch.dtype
    quantisations: Sequence[Quantisation]  # that the base may have, most bits first
    state: State | None


def agreed(run: TrainRun, device: torch.device, base_bytes: int, state: State | None) -> Agreement:
    """The precision and the quantisation of the base: a job that moved to another machine stays as it began."""
    wanted = precision(device, base_bytes, run.precision)
    if run.quantise != "auto":
        kinds: Sequence[Quantisation] = (run.quantise,)
    else:
        kinds = QUANTISATIONS if is_available() else ("none",)
    if state is None:
        return Agreement(wanted, kinds, None)
    name = str(wanted).removeprefix("torch.")
    began: torch.dtype = getattr(torch, state.precision or name)
    why = ""
    if began != wanted and run.precision != "auto":
        why = f"in {state.precision}, and {run.precision} is asked for"
    elif began != wanted and not can_hold(device, began):
        why = f"in {state.precision}, and {device} does not have that"
    elif state.quantisation not in kinds:
        why = f"on a base in {state.quantisation}, and here it may be {' or '.join(kinds)}"
    if why:
        log.warning("job %s begins anew: its checkpoint was trained %s", run.job_id, why)
        return Agreement(wanted, kinds, None)
    if began != wanted:
        log.info("job %s goes on in %s, as it began; here it would be %s", run.job_id, state.precision, name)
    return Agreement(began, (state.quantisation,), state)
