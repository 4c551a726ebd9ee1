"""The loss curve as SVG, and as text for people who cannot see it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10, sqrt
from statistics import fmean, variance

from web.pages.texts import gettext, number

WIDTH, HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 28, 12, 32
_MOST_POINTS = 300  # more cannot be distinguished at this width
_ROWS = 8
_LEAST = 5  # losses whose mean can be compared
Point = tuple[int, float]


@dataclass(frozen=True)
class Tick:
    """A line of the grid: its position and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Chart:
    """What the template draws. `raw` are the losses, `smooth` their moving average, both as points of a polyline."""

    raw: str
    smooth: str
    across: list[Tick]
    up: list[Tick]
    words: str
    rows: list[Point]


def loss_curve(losses: Sequence[Point]) -> Chart | None:
    """The chart of (step, loss) pairs in the order of their steps; None for fewer than two."""
    if len(losses) < 2:
        return None
    smooth = _smoothed(losses)
    kept = _thinned(losses)
    axes = _Axes.around(kept, last=losses[-1][0])
    return Chart(
        raw=axes.line(kept),
        smooth=axes.line(_thinned(smooth)),
        across=axes.across,
        up=axes.up,
        words=_words(losses),
        rows=[smooth[round(at * (len(smooth) - 1) / (_ROWS - 1))] for at in range(min(_ROWS, len(smooth)))]
        if len(smooth) >= _ROWS
        else list(smooth),
    )


@dataclass(frozen=True)
class _Axes:
    """Steps from 0 to `last` across, and losses from 0 to `highest` up, with a line of the grid at every `step`."""

    last: int
    step: float
    highest: float

    @classmethod
    def around(cls, points: Sequence[Point], last: int) -> "_Axes":
        top = max(loss for _, loss in points) or 1.0
        step = _round_step(top / 4)
        return cls(max(1, last), step, step * ceil(top / step))

    def line(self, points: Iterable[Point]) -> str:
        """The points of a polyline."""
        return " ".join(f"{self._x(at):.1f},{self._y(loss):.1f}" for at, loss in points)

    @property
    def across(self) -> list[Tick]:
        along = max(1, int(_round_step(self.last / 5)))
        return [Tick(self._x(at), number(at)) for at in range(0, self.last + 1, along)]

    @property
    def up(self) -> list[Tick]:
        losses = (self.step * at for at in range(round(self.highest / self.step) + 1))
        return [Tick(self._y(loss), number(loss, ".3g")) for loss in losses]

    def _x(self, step: int) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * step / self.last

    def _y(self, loss: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * loss / self.highest


def _smoothed(losses: Sequence[Point]) -> list[Point]:
    """An exponential moving average over a fifth of the points, without the bias towards the first one."""
    keep = 1 - min(1.0, 2 / (1 + max(1, len(losses) / 5)))
    total, weight, means = 0.0, 0.0, []
    for step, loss in losses:
        total, weight = keep * total + loss, keep * weight + 1
        means.append((step, total / weight))
    return means


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    every = max(1, len(points) // _MOST_POINTS)
    return [*points[:-1:every], points[-1]]


def _round_step(wanted: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least `wanted`."""
    power: float = 10 ** floor(log10(wanted))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= wanted * 0.999)


CANNOT_TELL = (
    "The loss of a step depends mostly on how much noise was added to the picture in that step, so a level curve does "
    "not mean that nothing was learned, and a lower one does not mean a better LoRA: judge by pictures drawn with it."
)


def _words(losses: Sequence[Point]) -> str:
    """What the curve tells, and what it cannot."""
    over = gettext("Loss over %(steps)s steps:") % {"steps": number(losses[-1][0])}
    return f"{over} {_change([loss for _, loss in losses])} {gettext(CANNOT_TELL)}"


def _change(losses: Sequence[float]) -> str:
    """The mean of the last third against that of the first, if they differ by more than chance."""
    third = len(losses) // 3
    if third < _LEAST:
        return gettext("too few measurements to tell a direction.")
    first, last = losses[:third], losses[-third:]
    before, after = fmean(first), fmean(last)
    chance = 2 * sqrt((variance(first) + variance(last)) / third)  # two standard errors of the difference
    if abs(after - before) <= chance:
        words = gettext(
            "no clear direction (from %(before)s in the first third to %(after)s in the last, which is within the "
            "scatter of single steps)."
        )
    elif after < before:
        words = gettext("it fell from %(before)s in the first third to %(after)s in the last.")
    else:
        words = gettext("it rose from %(before)s in the first third to %(after)s in the last.")
    return words % {"before": number(before, ".3g"), "after": number(after, ".3g")}


@dataclass(frozen=True)
class TwoCurves:
    """The moving averages of two trainings in one chart; an empty text for one without losses."""

    before: str
    after: str
    across: list[Tick]
    up: list[Tick]


def loss_curves(before: Sequence[Point], after: Sequence[Point]) -> TwoCurves | None:
    """The chart of two lists of (step, loss) pairs; None if neither has two."""
    curves = [_smoothed(losses) if len(losses) > 1 else [] for losses in (before, after)]
    points = [point for curve in curves for point in curve]
    if not points:
        return None
    axes = _Axes.around(points, last=max(at for at, _ in points))
    lines = [axes.line(_thinned(curve)) if curve else "" for curve in curves]
    return TwoCurves(before=lines[0], after=lines[1], across=axes.across, up=axes.up)
