"""The queues of Imprint's own workers, and which task names and queues are not an application's."""

WORK = ("io", "cpu", "sweep", "fetch", "notices")  # besides `train.{family}` and `draw.{family}` for each family
TRAIN, DRAW = "train.", "draw."
_TASKS = ("imprint.", "celery.")


def is_own_queue(name: str) -> bool:
    """Whether Imprint's workers take from this queue."""
    return name in WORK or name.startswith((TRAIN, DRAW))


def is_own_task(name: str) -> bool:
    """Whether a task is Imprint's, or one of Celery's own."""
    return name.startswith(_TASKS)
