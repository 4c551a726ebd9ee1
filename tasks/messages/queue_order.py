"""The order in which a worker takes from its queues on Redis."""

from collections.abc import Iterable

from kombu.utils.scheduling import round_robin_cycle

from core.brokers import queues


class FinishFirst(round_robin_cycle):
    """The last stages of trained jobs first, then the other queues in turn.

    RabbitMQ has no such order: there, a worker gets from each of its queues in turn, so a last stage waits for a few
    tasks at most.
    """

    def update(self, it: Iterable[str]) -> None:
        """Take from these queues from now on."""
        self.items[:] = sorted(it, key=lambda name: name != queues.FINISH)

    def rotate(self, last_used: str) -> str:
        """Put a queue that gave a message at the end."""
        if last_used != queues.FINISH:
            super().rotate(last_used)  # type: ignore[no-untyped-call]
        return last_used
