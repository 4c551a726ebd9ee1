"""Decides whether a job that moved to another machine or other settings resumes or restarts.

A training must not change its precision half-way: a resumed training gives the same bytes as an uninterrupted one.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from training.device import can_hold, precision
from training.engine.state import State
from training.families.weights.quantised import is_available
from training.memory_plan import QUANTISATIONS
from training.options import Quantisation
from training.ports import TrainRun

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Agreement:
    """How to load the base model, and the state to resume from."""

    dtype: torch.dtype
    quantisations: Sequence[Quantisation]  # allowed ones, most bits first
    state: State | None


def agreed(run: TrainRun, device: torch.device, base_bytes: int, state: State | None) -> Agreement:
    """The precision and quantisation of the base model. A job that resumes keeps those that it began with."""
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
        why = f"in {state.precision}, but {run.precision} is requested"
    elif began != wanted and not can_hold(device, began):
        why = f"in {state.precision}, which {device} does not support"
    elif state.quantisation not in kinds:
        why = f"on a base in {state.quantisation}, but here it must be {' or '.join(kinds)}"
    if why:
        log.warning("job %s restarts: its checkpoint was trained %s", run.job_id, why)
        return Agreement(wanted, kinds, None)
    if began != wanted:
        log.info("job %s resumes in %s, as it began; new jobs use %s here", run.job_id, state.precision, name)
    return Agreement(began, (state.quantisation,), state)
