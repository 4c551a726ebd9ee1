"""Fits a job into the memory of its card before the base model is loaded."""

import logging
from pathlib import Path

import torch

from core.errors import OutOfMemory
from training import memory_plan
from training.backends.agreement import Agreement, agreed
from training.device import max_slots
from training.engine import distributed
from training.families.family import FamilyCode
from training.families.weights.parts import weights_bytes
from training.memory_plan import Plan, share_of
from training.ports import TrainRun

log = logging.getLogger(__name__)


def fit_to_memory(
    run: TrainRun, family: FamilyCode, folder: Path, device: torch.device, agreement: Agreement
) -> tuple[Plan | None, Agreement]:
    """How the job fits into the card's memory. No plan on a CPU, or if several processes share the batch.

    A job that resumes keeps the quantisation of its base. If it fits only on a base in fewer bits, it restarts, with
    another agreement. Raises OutOfMemory if the job cannot fit.
    """
    if device.type != "cuda" or distributed.is_asked_for():
        return None, agreement
    base_bytes = weights_bytes(folder, family.parts[0])
    try:
        plan = _plan(run, folder, base_bytes, device, agreement)
    except OutOfMemory:
        restarted = agreed(run, device, base_bytes, None)
        if agreement.state is None or restarted.quantisations == agreement.quantisations:
            raise
        plan, agreement = _plan(run, folder, base_bytes, device, restarted), restarted
        log.warning("job %s restarts: on the base that it began on it does not fit into this card", run.job_id)
    log.info("job %s %s", run.job_id, plan)
    return plan, agreement


def _plan(run: TrainRun, folder: Path, base_bytes: int, device: torch.device, agreement: Agreement) -> Plan:
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return memory_plan.plan(
        run.spec,
        free_bytes + torch.cuda.memory_reserved(device),
        most_slots=run.slots or max_slots("cuda"),
        weight_bytes=agreement.dtype.itemsize,
        share=1.0 if folder.is_file() else share_of(run.spec, base_bytes),
        quantisations=agreement.quantisations,
    )
