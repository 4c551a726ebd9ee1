"""Steps recorded as CUDA graphs: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.

A graph is a recorded sequence of kernels over fixed memory: forward, backward, clip and optimizer of a whole step
become one launch. All graphs of an engine share one memory pool, and the least recently used ones are dropped.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOST_RECORDED = 8  # recorded steps of one engine: with many picture sizes, each with a graph, memory would run out

# Records work over fixed tensors. Returns a function that repeats it, and the tensor that each repetition overwrites.
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


_is_refused = False


def refuse() -> None:
    """Run all later steps of this process eagerly."""
    global _is_refused
    _is_refused = True


def is_allowed() -> bool:
    """Whether steps may be recorded. A worker forbids it if its self-check finds that recorded steps differ."""
    return not _is_refused


class EmptyRecording(RuntimeError):
    """A recorded step that changes nothing: its work ran on another device or stream."""


@dataclass(frozen=True)
class Recording:
    """One recorded step."""

    inputs: Any  # the batch whose tensors it reads
    repeat: Callable[[], None]
    losses: Tensor  # [N], overwritten by each repetition


class Recorder:
    """The recorded steps of one engine. Used by the engine's thread alone."""

    def __init__(self, record: Record, most: int = MOST_RECORDED) -> None:
        self.record, self._most = record, most
        self._held: OrderedDict[Hashable, Recording] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable) -> Recording | None:
        """The recording of `key`, which becomes the most recently used one."""
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def keep(self, key: Hashable, recording: Recording) -> None:
        """Keep a recording. If there are too many, drop the least recently used one."""
        self._held[key] = recording
        while len(self._held) > self._most:
            self._held.popitem(last=False)

    def drop(self, owner: Hashable = None) -> None:
        """Drop the recordings whose key begins with `owner`; all if it is None."""
        for key in [key for key in self._held if owner is None or key[0] == owner]:  # type: ignore[index]
            del self._held[key]


def cuda_recorder(device: torch.device) -> Recorder:
    """A recorder with its own memory pool and stream on `device`."""
    pool = torch.cuda.graph_pool_handle()
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(device)
        with on_stream(stream, device):
            # Other threads may use the device during a capture: they encode pictures.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                losses = work()
            except BaseException:
                _end_failed_capture(graph)
                raise
            graph.capture_end()
        return graph.replay, losses

    return Recorder(record)


class on_stream:  # noqa: N801 - reads as a verb
    """Inside, this thread's work goes to `stream`; afterwards, also after an error, to the stream of before."""

    def __init__(self, stream: Any, device: torch.device) -> None:
        self._stream, self._device = stream, device

    def __enter__(self) -> None:
        self._before = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(self._before)
        torch.cuda.set_stream(self._stream)

    def __exit__(self, *_: Any) -> None:
        torch.cuda.set_stream(self._before)
        self._before.wait_stream(self._stream)


def _end_failed_capture(graph: Any) -> None:
    """End a capture whose work raised, so that the stream can be used again."""
    with suppress(RuntimeError):  # the error of the work has the cause
        graph.capture_end()
