"""The common parts of all four trainings: seeded steps, checkpoints to resume from, and a progress bar.

The pictures of a step are a function of (seed, step), so a training that was killed resumes with the same pictures.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from demo.pocket.muon import Muon
from demo.pocket.scenes import PocketScene, compose

Step = Callable[[int], Tensor]  # the number of a step to its loss
_KEEP_EVERY_S = 60.0
_SAY_EVERY_S = 30.0


def compose_batch(seed: int, step: int, count: int) -> list[PocketScene]:
    """The scenes of one step."""
    random = Random(f"{seed} {step}")
    return [compose(random) for _ in range(count)]


def draw_batch(scenes: list[PocketScene]) -> Tensor:
    """Drawings as inputs of the VAE: [B, 3, 64, 64] float32 in -1..1."""
    values = np.stack([np.asarray(scene.draw(), np.float32) for scene in scenes])
    return torch.from_numpy(values / 127.5 - 1.0).permute(0, 3, 1, 2).contiguous()


def rate(step: int, steps: int, peak: float, warm_up: int = 100) -> float:
    """A learning rate that rises, is constant, and falls to zero over the last two fifths."""
    return peak * min(1.0, (step + 1) / warm_up, max(0.02, (steps - step) / (0.4 * steps)))


class Lesson:
    """One training: its networks, its optimizer, and the file of its checkpoint."""

    def __init__(
        self, name: str, folder: Path, parts: dict[str, torch.nn.Module], *, peak: float, decay: float,
        muon: bool = False,
    ) -> None:  # fmt: skip
        self.name, self.parts, self.peak = name, parts, peak
        self.path = folder / f"{name}.pt"
        learnt = [parameter for part in parts.values() for parameter in part.parameters() if parameter.requires_grad]
        self.learnt = learnt
        inner = [parameter for parameter in learnt if muon and parameter.ndim > 1 and min(parameter.shape[:2]) > 4]
        others = [parameter for parameter in learnt if not any(parameter is one for one in inner)]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=peak, weight_decay=decay, betas=(0.9, 0.98), fused=True)
        ]
        if inner:
            self.optimizers.append(Muon(inner, lr=peak, weight_decay=decay))
        self.start, self.seconds = 0, 0.0
        self.average: dict[str, Tensor] = {}  # of the weights, which draws better than the last ones

    def resume(self) -> None:
        if not self.path.is_file():
            return
        held = torch.load(self.path, weights_only=True, map_location=self.learnt[0].device)
        for name, part in self.parts.items():
            part.load_state_dict(held["parts"][name])
        for optimizer, state in zip(self.optimizers, held["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.start, self.seconds, self.average = held["step"], held["seconds"], held["average"]

    def keep(self, step: int) -> None:
        """Write a checkpoint, atomically."""
        held: dict[str, Any] = {
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": step,
            "seconds": self.seconds,
            "average": self.average,
        }
        temporary = self.path.with_suffix(".tmp")
        torch.save(held, temporary)
        temporary.replace(self.path)

    def learn(self, steps: int, step_of: Step, averaged: torch.nn.Module | None = None) -> None:
        """Do all remaining steps. Stops early, with a checkpoint, if there is a file `stop` beside the checkpoint."""
        stop = self.path.with_name("stop")
        kept = logged_at = time.monotonic()
        loss = 0.0
        with _bar() as bar:
            shown = bar.add_task(self.name, total=steps, completed=self.start, loss="")
            for step in range(self.start, steps):
                begun = time.monotonic()
                for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
                    group["lr"] = rate(step, steps, self.peak)
                made = step_of(step)
                made.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(self.learnt, 1.0)
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                if averaged is not None:
                    self._average(averaged, min(0.999, (1 + step) / (10 + step)))
                loss = float(made.detach()) if step == self.start else 0.98 * loss + 0.02 * float(made.detach())
                now = time.monotonic()
                self.seconds += now - begun
                bar.update(shown, completed=step + 1, loss=f"{loss:.4f}")
                if not sys.stderr.isatty() and now - logged_at > _SAY_EVERY_S:
                    logged_at = now
                    left = (steps - step - 1) * self.seconds / (step + 1)
                    print(f"{self.name} {step + 1}/{steps} loss {loss:.4f}, {left / 60:.0f} min left", flush=True)
                if now - kept > _KEEP_EVERY_S or stop.exists():
                    kept = now
                    self.keep(step + 1)
                if stop.exists():
                    return
        self.keep(steps)

    def _average(self, part: torch.nn.Module, share: float) -> None:
        for name, value in part.state_dict().items():
            if name in self.average:
                self.average[name].lerp_(value, 1 - share)
            else:
                self.average[name] = value.clone()


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())


def settle_threads(threads: int) -> None:
    """Use at most `threads` threads, which sleep while they wait."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    torch.set_num_threads(threads)
