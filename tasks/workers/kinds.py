"""The kinds of workers and their queues: the table behind `make up`, and the files in `deploy/` and `docs/`.

`python tools/tables.py` writes the queues into those files.
"""

from dataclasses import dataclass

from core.brokers import queues
from training.families.registry import trained_here

_DRAW = tuple(queues.DRAW + family for family in trained_here())


@dataclass(frozen=True)
class WorkerKind:
    """Workers that take from the same queues, in threads or else in processes."""

    name: str
    queues: tuple[str, ...]
    has_threads: bool = True

    def arguments(self, log_level: str, processes: int = 1, name: str = "") -> list[str]:
        """Celery's command line for a worker. `processes`: of a kind without threads. `name`: before the host."""
        pool = ["-P", "threads"] if self.has_threads else ["-c", str(processes)]
        return [
            "worker", "--without-gossip", "--without-mingle", "--loglevel", log_level,
            "-n", name or f"{self.name}@%h", "-Q", ",".join(self.queues), *pool,
        ]  # fmt: skip


KINDS = {
    kind.name: kind
    for kind in (
        WorkerKind("io", queues.IO, has_threads=False),
        WorkerKind("fetch", queues.FETCH),
        # On a GPU the training worker draws too: its trainings wait meanwhile. On a CPU it leaves that to `draw`.
        WorkerKind("train", (*(queues.TRAIN + family for family in trained_here()), *_DRAW)),
        WorkerKind("draw", _DRAW),
    )
}
