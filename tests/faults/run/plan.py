"""The plan of a fault run, from its seed: the requested trainings, and the faults with their times."""

import random
from dataclasses import dataclass

OWNERS = 5
PICTURES = 6
WORKERS = ("io", "io-2", "train", "train-2")
STAGES = ("preprocess", "dataset", "train", "upload", "settle", "step_failed")


@dataclass(frozen=True)
class Kind:
    """A kind of fault: its targets, its relative frequency, and its duration in seconds."""

    name: str
    targets: tuple[str, ...]
    weight: int
    lasts_s: tuple[float, float]


# A killed process stays away for that long; a paused one is resumed after it, when its lease (3 s) has expired.
KINDS = (
    Kind("kill io", ("io", "io-2"), 9, (0.2, 3)),
    Kind("kill a child of io", ("io", "io-2"), 7, (0, 0)),
    Kind("kill train", ("train", "train-2"), 11, (0.2, 3)),
    Kind("kill beat", ("beat", "beat-2"), 3, (0.5, 5)),
    Kind("pause io", ("io", "io-2"), 6, (5, 9)),
    Kind("pause train", ("train", "train-2"), 8, (5, 9)),
    Kind("pause beat", ("beat", "beat-2"), 2, (3, 8)),
    Kind("Redis back to its last snapshot", ("redis",), 6, (0.2, 4)),
    Kind("Redis loses everything", ("redis",), 4, (0.2, 4)),
    Kind("Redis flushed", ("redis",), 3, (0, 0)),
    Kind("pause Redis", ("redis",), 4, (2, 6)),
    Kind("crash PostgreSQL", ("postgres",), 7, (0.2, 3)),
    Kind("pause PostgreSQL", ("postgres",), 3, (2, 6)),
    Kind("store refuses", ("store",), 7, (1, 4)),
    Kind("store cuts connections", ("store",), 6, (1, 4)),
    Kind("store loses answers", ("store",), 6, (1, 4)),
    Kind("receiver refuses first attempts", ("receiver",), 5, (3, 10)),
)
# After a fault the target rests for a while: killing a process during its start tests nothing.
REST_S = {"io": 14.0, "train": 18.0, "beat": 10.0, "redis": 7.0, "postgres": 8.0, "store": 6.0, "receiver": 6.0}


@dataclass(frozen=True)
class Fault:
    """A fault from `at_s`, in seconds from the start, for `lasts_s` seconds."""

    at_s: float
    kind: str
    target: str
    lasts_s: float
    share: float = 1.0  # of the requests, for a faulty store


@dataclass(frozen=True)
class PlannedTraining:
    """A training request of an owner. `what`: good, bad pictures, too few, or broken base."""

    number: int
    at_s: float
    owner_id: str
    what: str
    stored: bool  # pictures by id, the same for all orders of an owner; else by address, of this order only
    copies: int  # how often it is sent, with the same idempotency key
    by_task: bool  # through the broker; else by calling `submit`, as a web process would
    webhook: bool
    cancel_after_s: float | None


@dataclass(frozen=True)
class Resend:
    """A duplicate of a stage's message for the request with this number, whatever its status."""

    at_s: float
    number: int
    stage: str


@dataclass(frozen=True)
class Plan:
    """All of a run. `during_s`: when the last thing goes wrong."""

    seed: int
    during_s: float
    orders: tuple[PlannedTraining, ...]
    faults: tuple[Fault, ...]
    resends: tuple[Resend, ...]


def make_plan(seed: int, jobs: int, during_s: float, faults: int) -> Plan:
    """The plan of a seed: the same arguments give the same plan."""
    chance = random.Random(seed)
    orders = tuple(_order(chance, number, during_s * 0.9 * number / jobs) for number in range(jobs))
    resends = sorted(
        (_resend(chance, order, during_s) for order in chance.choices(orders, k=jobs // 2)), key=lambda one: one.at_s
    )
    return Plan(seed, during_s, orders, tuple(_faults(chance, faults, during_s)), tuple(resends))


def _order(chance: random.Random, number: int, at_s: float) -> PlannedTraining:
    return PlannedTraining(
        number,
        round(at_s + chance.uniform(0, 1), 2),
        owner_id=f"owner-{chance.randrange(OWNERS)}",
        what=chance.choices(("good", "bad pictures", "too few", "broken base"), (88, 4, 5, 3))[0],
        stored=chance.random() < 0.4,
        copies=chance.choices((1, 2, 3), (8, 2, 1))[0],
        by_task=chance.random() < 0.75,
        webhook=chance.random() < 0.8,
        cancel_after_s=round(chance.uniform(0, 12), 1) if chance.random() < 0.08 else None,
    )


def _resend(chance: random.Random, order: PlannedTraining, during_s: float) -> Resend:
    late = chance.random() < 0.2  # long after, when the job is final
    after = chance.uniform(0, during_s - order.at_s) if late else chance.uniform(0, 12)
    return Resend(round(min(order.at_s + after, during_s), 2), order.number, chance.choice(STAGES))


def _faults(chance: random.Random, count: int, during_s: float) -> list[Fault]:
    """One after another, evenly; each kind once before they are drawn by weight, and no target twice in a row."""
    first = chance.sample(KINDS, len(KINDS))
    free: dict[str, float] = {}
    planned = []
    for number in range(count):
        at_s = during_s * (number + chance.random()) / count
        kind = first.pop() if first else chance.choices(KINDS, [kind.weight for kind in KINDS])[0]
        target = chance.choice(kind.targets)
        at_s = max(at_s, free.get(target, 0.0))
        lasts_s = chance.uniform(*kind.lasts_s)
        free[target] = at_s + lasts_s + REST_S[target.split("-")[0]]
        planned.append(Fault(round(at_s, 2), kind.name, target, round(lasts_s, 2), round(chance.uniform(0.3, 1), 2)))
    return sorted(planned, key=lambda fault: fault.at_s)
