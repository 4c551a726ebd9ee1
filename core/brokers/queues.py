"""The queues of Imprint's own workers, and which task names and queues are not an application's."""

# The last stages of a trained job go before everything else that a worker takes. The name begins with `io`, so that a
# Redis user with the rights that earlier versions needed may use it.
FINISH = "io.finish"
IO = (FINISH, "io", "cpu", "sweep")
FETCH = ("fetch", "notices")  # tasks that call hosts of owners
WORK = (*IO, *FETCH)  # besides these, `train.{family}` and `draw.{family}` for each family
TRAIN, DRAW = "train.", "draw."
_TASKS = ("imprint.", "celery.")


def is_own_queue(name: str) -> bool:
    """Whether Imprint's workers take from this queue."""
    return name in WORK or name.startswith((TRAIN, DRAW))


def is_own_task(name: str) -> bool:
    """Whether a task is Imprint's, or one of Celery's own."""
    return name.startswith(_TASKS)
