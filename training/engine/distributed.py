"""One training over several processes: each takes a part of every batch, and all make the same update.

Every process draws the whole batch of a step, which is a pure function of (seed, step), and computes with its own rows.
The mean of the parts' gradients is the gradient of the whole batch, so all processes have the same weights after the
update, and the LoRA is the one that a single process would have made, except for the order of summation.

`accelerate launch` (or `torchrun`) starts the processes. In a process that was started alone, the functions here do
nothing. PyTorch's DistributedDataParallel is not used: the adapters are one flat tensor, so a single reduction replaces
its buckets and hooks.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from core.errors import SpecInvalid
from training.engine.cohorts.job_batch import JobBatch
from training.families.family import Draw

STOP_EVERY = 20  # steps between two checks whether any process was asked to stop: each check waits for all
_PATIENCE = timedelta(minutes=30)  # one process may load a base model from a slow disk while the others wait


def is_asked_for() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """The number of this process, from 0; 0 if it is alone."""
    return dist.get_rank() if is_shared() else 0


@contextmanager
def sharing(device: str, batch_size: int) -> Iterator[str]:
    """Connect to the other processes that a launcher started; yields the device that this one trains on.

    Raises SpecInvalid if the batch cannot be divided evenly. Does nothing in a process that is alone.
    """
    if not is_asked_for():
        yield device
        return
    several = int(os.environ["WORLD_SIZE"])
    if batch_size % several:
        raise SpecInvalid.of({"--batch-size": f"{batch_size} cannot be shared evenly by {several} processes"})
    on_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_cuda:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_cuda else "gloo", timeout=_PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Return when every process has called this."""
    if is_shared():
        dist.barrier()


def part(batch: JobBatch) -> JobBatch:
    """The rows of a job's batch that this process computes."""
    if not is_shared():
        return batch
    rows = len(batch.conditions) // dist.get_world_size()
    mine = slice(dist.get_rank() * rows, (dist.get_rank() + 1) * rows)
    made = Draw(*(value[mine] for value in batch.made.parts))
    return replace(batch, made=made, conditions=batch.conditions[mine], classes=batch.classes[mine])


def average(*values: Tensor) -> None:
    """Replace each value by its mean over the processes, in place, in one collective call."""
    if is_shared():
        whole = torch.cat([value.flatten() for value in values])
        dist.all_reduce(whole)
        whole /= dist.get_world_size()
        means = torch.split(whole, [value.numel() for value in values])
        for value, mean in zip(values, means, strict=True):
            value.copy_(mean.view_as(value))


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is true in any process. All get the same answer, so that they leave at the same step."""
    if not is_shared():
        return flag
    flags = torch.tensor(float(flag), device=device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags.item())


def is_shared() -> bool:
    """Whether this process is connected to the others of its training."""
    return dist.is_available() and dist.is_initialized()
