"""Functions of tensors, compiled by torch: on a card to Triton kernels, which a recorded step then has in place of many
small ones, on a CPU to C++. https://docs.pytorch.org/docs/stable/generated/torch.compile.html

Whoever asks for it gets compiled code or, where this machine cannot compile, none: nobody's training fails over it.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor

log = logging.getLogger(__name__)

_compile: Any = torch.compile  # its types lack the last of the arguments
_found: dict[str, "Compiler | None"] = {}  # by the kind of device
_finding = threading.Lock()


class Compiler:
    """Compiles each function once for every kind of arguments that it meets, at the first call with them."""

    def __init__(self) -> None:
        self._made: dict[Callable[..., Any], _Compiled] = {}

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` compiled: the layers that ask for the same share it."""
        if function not in self._made:
            self._made[function] = _Compiled(function)
        return self._made[function]


class _Compiled:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._made: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *given: Any) -> Any:
        # What torch would guard on, in a table: its own list for a function is walked at each call, and is short.
        key = tuple(
            (one.device, one.dtype, one.shape, one.stride()) if isinstance(one, Tensor) else one for one in given
        )
        made = self._made.get(key)
        return made(*given) if made is not None else self._first(key, given)

    def _first(self, key: Any, given: tuple[Any, ...]) -> Any:
        # Each kind of arguments in a list of torch's own, so that a call looks at one set of guards.
        made = _compile(self.function, fullgraph=True, dynamic=False, isolate_recompiles=True)
        try:
            with _dials():
                found = made(*given)
        except Exception as error:  # whatever a compiler may say
            if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise  # not the compiler's: the engine knows what to do
            log.warning("%s is not compiled for these shapes: %s", self.function.__name__, _first_line(error))
            made = self.function
            found = made(*given)
        self._made[key] = made
        return found


def compiler(folder: Path | None, device: torch.device) -> Compiler | None:
    """What compiles for `device` and keeps its code in `folder`; None if none is asked for, or it cannot be done here.

    One for all base models of a process. The first call for a kind of device tries it, which takes seconds.
    """
    if folder is None:
        return None
    with _finding:
        if device.type not in _found:
            _found[device.type] = Compiler() if _works(folder, device) else None
        return _found[device.type]


def _works(folder: Path, device: torch.device) -> bool:
    """Try it with a small function; if it fails, one line in the log says why."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # what lies there is run
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
        with _dials():
            made = _compile(_trial, fullgraph=True, dynamic=False)(torch.ones(16, device=device))
        if made.tolist() != [2.0] * 16:
            raise RuntimeError("compiled code reckons wrongly")
    except Exception as error:  # noqa: BLE001 - whatever a compiler, its linker or a full disk may say
        log.warning("steps run without compiled code: this machine cannot compile (%s)", _first_line(error))
        return False
    return True


@contextmanager
def _dials() -> Iterator[None]:
    """torch's own, which are each thread's: the way back is compiled on a thread of autograd's."""
    # A norm meets a few shapes in a step, and those again for every number of slots and size of pictures.
    limits: Any = torch._dynamo.config.patch(accumulated_recompile_limit=4096)
    # Timing must not choose the order of sums where the same bits are asked for.
    choices: Any = torch._inductor.config.patch(deterministic=torch.are_deterministic_algorithms_enabled())
    with limits, choices:
        yield


def _trial(x: Tensor) -> Tensor:
    return x * x + 1


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
