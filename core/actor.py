"""Who acts: a token, an operator's command, a sweep, or the service itself. The audit log and limits ask for it.

The actor is a value of the context. A web request learns its token in another thread than the one that began it, so the
context holds an object that both share.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Actor:
    """kind: `service` for steps of jobs and requests from queues, `token`, `person` (an operator who signed in by
    OpenID Connect), `command` or `sweep`; id: which one.
    """

    kind: str = "service"
    id: str = ""

    @property
    def token_id(self) -> str | None:
        return self.id if self.kind == "token" else None


_CURRENT: ContextVar[Actor | None] = ContextVar("imprint_actor", default=None)


def current() -> Actor:
    """The actor of what runs now."""
    return _CURRENT.get() or Actor()


@contextmanager
def acting(kind: str = "service", name: str = "") -> Iterator[None]:
    """Everything in the block is done by this actor."""
    before = _CURRENT.set(Actor(kind, name))
    try:
        yield
    finally:
        _CURRENT.reset(before)


def identify(kind: str, name: str) -> None:
    """The actor of the surrounding block is known now."""
    actor = _CURRENT.get()
    if actor is not None:
        actor.kind, actor.id = kind, name


def act_as(kind: str, name: str) -> None:
    """The whole process acts for this actor from now on."""
    _CURRENT.set(Actor(kind, name))
