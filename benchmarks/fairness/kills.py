"""What is killed at which tick. The same seed gives the same plan, so that two runs are hurt alike."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Kill:
    """A scheduler or a worker by number, or the database, in one of the three phases of a tick."""

    what: str
    number: int
    phase: int
    after_s: float  # into the work of the phase


@dataclass
class KillPlan:
    """Each tick a scheduler is killed with the chance `schedulers`, and so on. `restart_database` kills it as well."""

    schedulers: float = 0.0
    workers: float = 0.0
    database: float = 0.0
    restart_database: Callable[[], None] = lambda: None
    seed: int = 7
    done: dict[str, int] = field(default_factory=lambda: {"scheduler": 0, "worker": 0, "database": 0})

    def at(self, tick: int, counts: dict[str, int]) -> list[Kill]:
        """The kills of a tick, the earliest first. `counts`: how many schedulers and workers there are."""
        chance = random.Random(f"{self.seed} {tick}")
        rates = {"scheduler": self.schedulers, "worker": self.workers, "database": self.database}
        kills = []
        for what, rate in rates.items():
            hit, number = chance.random() < rate, chance.randrange(1000)
            phase, after_s = chance.randrange(3), chance.uniform(0, 0.03)
            if hit and counts.get(what, 1):
                kills.append(Kill(what, number % counts.get(what, 1), phase, after_s))
        return sorted(kills, key=lambda kill: kill.after_s)
