"""`make faults`: run a plan of faults, print what became of every training; exit code 1 if anything was lost.

The last line is one JSON object: `seed, jobs, ready, failed, cancelled, faults, redelivered, lost, stuck,
double_charged, unnotified, audit_ok, seconds`. The words are defined in `verdict`. `SEED=… make faults` repeats a plan.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from jobs.owners import accounts
from tests.faults.run.owners import Owners
from tests.faults.run.plan import OWNERS, Fault, Plan, make_plan
from tests.faults.run.verdict import Verdict, judge, waits
from tests.faults.run.world import World, world
from tests.site import make_base, until

_SNAPSHOT_S = 4.0
_LOOK_S = 0.2


def main(arguments: Sequence[str] | None = None, base_model: Path | None = None) -> int:
    """Plan, run and judge; print the result. Without `base_model`, the run makes one of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = os.environ.get("SEED") or random.SystemRandom().randrange(10**6)
    parser.add_argument("--seed", type=int, default=int(given))
    parser.add_argument("--jobs", type=int, default=210)
    parser.add_argument("--faults", type=int, default=150)
    parser.add_argument("--seconds", type=float, default=540.0, help="over which orders and faults are spread")
    parser.add_argument("--quiet-s", type=float, default=600.0, help="what may be left to heal after the last fault")
    parser.add_argument("--keep", action="store_true", help="keep the folder with all logs, also of a good run")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 110)
    plan = make_plan(options.seed, options.jobs, options.seconds, options.faults)
    console.print(
        f"seed [bold]{plan.seed}[/]: {options.jobs} orders and {options.faults} faults in {plan.during_s:.0f} s; "
        f"SEED={plan.seed} make faults repeats this plan",
        highlight=False,
    )
    folder = Path(tempfile.mkdtemp(prefix="imprint-faults-"))
    begun = time.monotonic()
    with world(folder, base_model or make_base(folder / "base")) as made:
        run = Run(made, plan, folder, console)
        run.go(options.quiet_s)
        made.site.end()
        verdict = judge(made, run.owners, plan)
        result = run.result(verdict, time.monotonic() - begun)
    _show(console, run, verdict)
    if verdict.good and not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        console.print(f"logs: {folder}", highlight=False)
    print(json.dumps(result))
    return 0 if verdict.good else 1


class Run:
    """Runs a plan: the faults in this thread, each training request in its own thread."""

    def __init__(self, world: World, plan: Plan, folder: Path, console: Console) -> None:
        self._world, self._plan, self._console = world, plan, console
        self.owners = Owners(world, folder / "pictures")
        self.done: Counter[str] = Counter()
        self.ended_by_themselves: Counter[str] = Counter()
        self._threads: list[threading.Thread] = []
        self._last = "starting"

    def go(self, quiet_s: float) -> None:
        """Everything of the plan, and then the quiet time: at most `quiet_s`, less if there is nothing to wait for."""
        for number in range(OWNERS):
            accounts.grant(self._world.site.services, f"owner-{number}", 10_000, key="start")
        for name in self._world.site.processes:
            if not name.startswith("beat"):
                until(lambda name=name: " ready." in self._world.site.log(name).read_text(), 300, f"{name} ready")  # type: ignore[misc]
        with self._progress() as progress:
            task = progress.add_task("", total=len(self._plan.orders))
            show = lambda: progress.update(task, completed=len(self._world.heard), description=self._last)  # noqa: E731
            self._break(show)
            self._wait(quiet_s, show)
        self.owners.given_up.set()
        for thread in self._threads:
            thread.join(60)

    def _break(self, show: Callable[[], None]) -> None:
        """Orders, messages sent twice, faults and their ends, each at its time."""
        plan, world = self._plan, self._world
        actions: list[tuple[float, str, Callable[[], None]]] = [
            *((order.at_s, "", self._apart(partial(self.owners.place, order))) for order in plan.orders),
            *((one.at_s, "", self._apart(partial(self.owners.resend, one))) for one in plan.resends),
            *((fault.at_s, f"{fault.kind} ({fault.target})", partial(self._begin, fault)) for fault in plan.faults),
            *((fault.at_s + fault.lasts_s, "", partial(world.end, fault)) for fault in plan.faults),
            *((at * _SNAPSHOT_S, "", world.save_redis) for at in range(int(plan.during_s / _SNAPSHOT_S))),
        ]
        begun = time.monotonic()
        for at_s, what, action in sorted(actions, key=lambda one: one[0]):
            while (left := begun + at_s - time.monotonic()) > 0:
                self._world.listen()
                self.ended_by_themselves.update(self._world.revive())
                show()
                time.sleep(min(left, _LOOK_S))
            self._say(f"{at_s:5.0f} s  {what}" if what else "")
            action()

    def _begin(self, fault: Fault) -> None:
        self._world.begin(fault)
        self.done[fault.kind] += 1

    def _wait(self, quiet_s: float, show: Callable[[], None]) -> None:
        """Wait without faults until all accepted jobs have ended and their owners are notified."""
        deadline = time.monotonic() + quiet_s
        logged_at = 0.0
        while time.monotonic() < deadline:
            self._world.listen()
            self.ended_by_themselves.update(self._world.revive())
            waiting = [
                f"order {order.number}" for order in self._plan.orders if order.number not in self.owners.accepted
            ]
            waiting = waiting or waits(self._world)
            if not waiting and not any(thread.is_alive() for thread in self._threads):
                return
            if time.monotonic() > logged_at + 15:
                logged_at = time.monotonic()
                self._say(f"quiet: {len(waiting)} to wait for, as {waiting[0] if waiting else 'a cancel'}")
            show()
            time.sleep(1)

    def _apart(self, action: Callable[[], None]) -> Callable[[], None]:
        """The same in a thread: an owner who waits for a server that is away holds up nobody."""

        def start() -> None:
            thread = threading.Thread(target=action, daemon=True)
            self._threads.append(thread)
            thread.start()

        return start

    def _say(self, what: str) -> None:
        if what:
            self._last = what.strip()
            if not self._console.is_terminal:
                self._console.print(what, highlight=False)

    def _progress(self) -> Progress:
        return Progress(
            SpinnerColumn(),
            TextColumn("ended"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def result(self, verdict: Verdict, seconds: float) -> dict[str, int | bool | float]:
        """The last line."""
        return {
            "seed": self._plan.seed,
            "jobs": verdict.jobs,
            "ready": verdict.ends["ready"],
            "failed": verdict.ends["failed"],
            "cancelled": verdict.ends["cancelled"],
            "faults": self.done.total(),
            "redelivered": self.owners.resent,
            "lost": len(verdict.lost),
            "stuck": len(verdict.stuck),
            "double_charged": len(verdict.double_charged),
            "unnotified": len(verdict.unnotified),
            "audit_ok": verdict.audit_ok,
            "seconds": round(seconds, 1),
        }


def _show(console: Console, run: Run, verdict: Verdict) -> None:
    """The tables, and everything that is wrong."""
    faults = Table("fault", "times", box=None, title="What went wrong", title_justify="left")
    for kind, times in sorted(run.done.items()):
        faults.add_row(kind, str(times))
    faults.add_row("a stage's message sent once more", str(run.owners.resent))
    for name, times in run.ended_by_themselves.items():
        faults.add_row(f"{name} ended by itself and was started again", str(times))
    ends = Table("jobs", str(verdict.jobs), box=None, title="What became of it", title_justify="left")
    for status, count in verdict.ends.items():
        ends.add_row(status, str(count))
    for code, count in verdict.codes.items():
        ends.add_row(f"  {code}", str(count))
    for name in ("lost", "stuck", "double_charged", "unnotified", "left_behind"):
        ends.add_row(name.replace("_", " "), str(len(getattr(verdict, name))))
    ends.add_row("ledger audit", "clean" if verdict.audit_ok else "NOT clean")
    console.print(faults, ends)
    for finding in verdict.findings:
        console.print(f"[red]{finding}[/]", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
