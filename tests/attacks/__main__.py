"""`python -m tests.attacks`: a mix of attacks, two at a time, with an honest owner's times. Part of `make faults`.

The last line is one JSON object; exit code 1 if another owner was delayed, or if an account is wrong. `SEED=…` repeats
the order of a run.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from tests.attacks.attacks import ATTACKS
from tests.attacks.world import AFTER_S, Times, World, world
from tests.site import make_base


def main() -> int:
    """Attack and measure; print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = os.environ.get("SEED") or random.SystemRandom().randrange(10**6)
    parser.add_argument("--seed", type=int, default=int(given))
    parser.add_argument("--seconds", type=float, default=240.0)
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(f"seed [bold]{options.seed}[/]: attacks for {options.seconds:.0f} s", highlight=False)
    with tempfile.TemporaryDirectory(prefix="imprint-attacks-") as name:
        folder = Path(name)
        with world(folder, make_base(folder / "base")) as made:
            result = run(made, options.seed, options.seconds, console)
    print(json.dumps(result))
    return 0 if result["good"] else 1


def run(made: World, seed: int, seconds: float, console: Console) -> dict[str, float | int | bool]:
    """Two attacks at a time, in the order of the seed, until the time is over; each kind at least once."""
    chance, normal = random.Random(seed), made.normal()
    console.print(
        f"normal: a training in {normal.job_s:.1f} s, a page in {normal.page_s * 1000:.0f} ms", highlight=False
    )
    begun, rounds, left, measured = time.monotonic(), 0, list[str](), list[Times]()
    while time.monotonic() - begun < seconds or rounds * 2 < len(ATTACKS):
        left = left if len(left) >= 2 else chance.sample(sorted(ATTACKS), len(ATTACKS))
        names, left, rounds = left[:2], left[2:], rounds + 1
        with ExitStack() as attacks:
            for name in names:
                attacks.enter_context(ATTACKS[name](made))
            during = made.measure()
            measured.append(during)
        text = f"a training in {during.job_s:.1f} s, a page in {during.page_s * 1000:.0f} ms"
        console.print(f"{time.monotonic() - begun:5.0f} s  {' and '.join(names)}: {text}", highlight=False)
    calm_s = _calm(made, normal)
    delayed = sum(not one.is_normal(normal) for one in measured)
    sums_ok, audit_ok = made.sums_are_right(), made.audit_is_clean()
    return {
        "seed": seed,
        "rounds": rounds,
        "normal_job_s": round(normal.job_s, 2),
        "slowest_job_s": round(max(one.job_s for one in measured), 2),
        "normal_page_s": round(normal.page_s, 3),
        "slowest_page_s": round(max(one.page_s for one in measured), 3),
        "delayed": delayed,
        "normal_after_s": round(calm_s, 1),
        "audit_ok": audit_ok,
        "sums_ok": sums_ok,
        "good": not delayed and calm_s < AFTER_S and audit_ok and sums_ok,
    }


def _calm(made: World, normal: Times) -> float:
    """Seconds until times are normal again, at most twice `AFTER_S`."""
    ended = time.monotonic()
    while not made.measure().is_normal(normal) and time.monotonic() - ended < 2 * AFTER_S:
        pass
    return time.monotonic() - ended


if __name__ == "__main__":
    sys.exit(main())
