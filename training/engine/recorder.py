"""Steps recorded as CUDA graphs: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.

A graph is a recorded sequence of kernels over fixed memory, so that forward, backward, clip and optimizer of a whole
step become one launch. All graphs of an engine share one pool of memory; those that were not used the longest go.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOST_RECORDED = 8  # steps of other shapes, of one engine: mixed sizes of pictures must not keep a graph each

# Makes of work over fixed tensors how to repeat it, and the tensor that it fills each time.
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


_is_refused = False


def refuse() -> None:
    """From now on every step of this process is sent to the device one by one."""
    global _is_refused
    _is_refused = True


def is_allowed() -> bool:
    """Whether steps may be recorded: a worker refuses where its check finds that they differ."""
    return not _is_refused


class EmptyRecording(RuntimeError):
    """A recorded step that changes nothing: it went to another device or stream."""


@dataclass(frozen=True)
class Recording:
    """One recorded step."""

    inputs: Any  # the batch whose tensors it reads
    repeat: Callable[[], None]
    losses: Tensor  # what it fills


class Recorder:
    """The recorded steps of one engine. Used by the engine's thread alone."""

    def __init__(self, record: Record, most: int = MOST_RECORDED) -> None:
        self.record, self._most = record, most
        self._held: OrderedDict[Hashable, Recording] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable) -> Recording | None:
        """The recording under `key`, which counts as used now."""
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def keep(self, key: Hashable, recording: Recording) -> None:
        """Keep a recording; the one that was not used the longest goes where there are too many."""
        self._held[key] = recording
        while len(self._held) > self._most:
            self._held.popitem(last=False)

    def drop(self, owner: Hashable = None) -> None:
        """Let go of the recordings whose key begins with `owner`; of all if it is None."""
        for key in [key for key in self._held if owner is None or key[0] == owner]:  # type: ignore[index]
            del self._held[key]


def cuda_recorder(device: torch.device) -> Recorder:
    """A recorder with a memory pool and a stream of its own on `device`."""
    pool = torch.cuda.graph_pool_handle()
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(device)
        with on_stream(stream, device):
            # Other threads may use the device meanwhile: they encode pictures.
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
    """Inside, this thread's work goes to `stream`; afterwards, whatever happened, to the stream that it went to."""

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
    with suppress(RuntimeError):  # the error of the work says why
        graph.capture_end()
