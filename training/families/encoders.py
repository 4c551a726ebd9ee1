"""VAE, text encoders and tokenizers of a base model: loaded when first needed, on the device only while in use."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

_CPU = torch.device("cpu")


class Encoders(Mapping[str, Any]):
    """The parts of a base model except the denoiser, by their folder's name.

    A part is loaded to the host on its first use. Inside `awake` it is on the device; afterwards the device's memory is
    free again. Only one thread encodes at a time.
    """

    def __init__(self, loaders: Mapping[str, Callable[[], Any]], device: torch.device = _CPU) -> None:
        self._loaders, self._device = dict(loaders), device
        self._parts: dict[str, Any] = {}
        self._on_host: dict[str, list[tuple[Tensor, Tensor]]] = {}  # each tensor of a part, with its data on the host
        self._lock = threading.RLock()
        # Copies and encoding use their own stream, so that the steps of other jobs continue.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __getitem__(self, name: str) -> Any:
        """The part, loaded if necessary. Raises BaseModelUnavailable."""
        with self._lock:
            if name not in self._parts:
                part = self._loaders[name]()
                if self._stream is not None and isinstance(part, nn.Module):
                    self._on_host[name] = [(held, _pin(held)) for held in (*part.parameters(), *part.buffers())]
                    _park(self._on_host[name])
                self._parts[name] = part
            return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaders)

    def __len__(self) -> int:
        return len(self._loaders)

    @property
    def loaded(self) -> tuple[str, ...]:
        """The names of the parts that are loaded."""
        return tuple(self._parts)

    @contextmanager
    def awake(self, *names: str) -> Iterator[None]:
        """Inside, the named parts are on the device; afterwards only on the host. Raises BaseModelUnavailable."""
        with self._lock, ExitStack() as stack:
            for name in names:
                self[name]  # load them all before the first uses memory of the device
            if self._stream is not None:
                stack.enter_context(torch.cuda.device(self._device))
                stack.enter_context(torch.cuda.stream(self._stream))
            try:
                for name in names:
                    for held, on_host in self._on_host.get(name, ()):
                        held.data = on_host.to(self._device, non_blocking=True)
                yield
            finally:
                for name in names:
                    _park(self._on_host.get(name, ()))
                if self._stream is not None:
                    self._stream.synchronize()
                    torch.cuda.empty_cache()


def _park(weights: Iterable[tuple[Tensor, Tensor]]) -> None:
    for held, on_host in weights:
        held.data = on_host


def _pin(held: Tensor) -> Tensor:
    """The tensor's data in pinned host memory, which allows asynchronous copies; unchanged if no more can be pinned.

    Weights are frozen, so the copy stays valid, and nothing is copied back.
    """
    try:
        return held.data.pin_memory()
    except RuntimeError as error:
        log.warning("moving encoders to the device will be slow: host memory cannot be pinned (%s)", str(error)[:120])
        return held.data
