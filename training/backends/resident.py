"""One base model stays loaded between the trainings of a worker: a cold start takes seconds, a warm one none."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import Stop
from training.families.family import Base, Family, Where

_Key = tuple[str, Where, str]

_lock = threading.Lock()
_kept: tuple[_Key, Base] | None = None


@contextmanager
def borrowed(family: Family, where: Where, fingerprint: str) -> Iterator[Base]:
    """The base model in `where`, for one training: the one kept from the last, if it is the same, else loaded.

    It is kept again when the block ends well, or early in good order (a cancelled job); after an error it is thrown
    away, since it may be the reason. Another training at the same time in this process loads one of its own.
    """
    key = (family.name, where, fingerprint)
    base = _take(key)
    if base is None:
        base = family.load(where)
    try:
        yield base
    except Stop:
        _keep(key, base)
        raise
    _keep(key, base)


def _take(key: _Key) -> Base | None:
    """The kept base if it is the wanted one; another is let go first, so that two never share the memory."""
    global _kept
    with _lock:
        kept, _kept = _kept, None
    if kept is None or kept[0] != key:
        return None
    return kept[1]


def _keep(key: _Key, base: Base) -> None:
    global _kept
    if base.denoiser.is_gradient_checkpointing:
        base.denoiser.disable_gradient_checkpointing()  # the next training may have the memory
    with _lock:
        _kept = (key, base)
