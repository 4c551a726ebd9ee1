"""The loss curve as SVG, and as text for people who cannot see it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10, sqrt
from statistics import fmean, variance

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
    top = max(loss for _, loss in kept) or 1.0
    step = _round_step(top / 4)
    highest = step * ceil(top / step)
    last = max(1, losses[-1][0])

    def place(point: Point) -> str:
        x = _LEFT + (WIDTH - _LEFT - _RIGHT) * point[0] / last
        return f"{x:.1f},{_y(point[1], highest):.1f}"

    along = max(1, int(_round_step(last / 5)))
    return Chart(
        raw=" ".join(map(place, kept)),
        smooth=" ".join(map(place, _thinned(smooth))),
        across=[Tick(_LEFT + (WIDTH - _LEFT - _RIGHT) * at / last, str(at)) for at in range(0, last + 1, along)],
        up=[Tick(_y(step * at, highest), f"{step * at:.3g}") for at in range(round(highest / step) + 1)],
        words=_words(losses),
        rows=[smooth[round(at * (len(smooth) - 1) / (_ROWS - 1))] for at in range(min(_ROWS, len(smooth)))]
        if len(smooth) >= _ROWS
        else list(smooth),
    )


def _y(loss: float, highest: float) -> float:
    return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * loss / highest


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


_CANNOT_TELL = (
    "The loss of a step depends mostly on how much noise was added to the picture in that step, so a level curve does "
    "not mean that nothing was learned, and a lower one does not mean a better LoRA: judge by pictures drawn with it."
)


def _words(losses: Sequence[Point]) -> str:
    """What the curve tells, and what it cannot."""
    return f"Loss over {losses[-1][0]} steps: {_change([loss for _, loss in losses])} {_CANNOT_TELL}"


def _change(losses: Sequence[float]) -> str:
    """The mean of the last third against that of the first, if they differ by more than chance."""
    third = len(losses) // 3
    if third < _LEAST:
        return "too few measurements to tell a direction."
    first, last = losses[:third], losses[-third:]
    before, after = fmean(first), fmean(last)
    chance = 2 * sqrt((variance(first) + variance(last)) / third)  # two standard errors of the difference
    means = f"from {before:.3g} in the first third to {after:.3g} in the last"
    if abs(after - before) <= chance:
        return f"no clear direction ({means}, which is within the scatter of single steps)."
    return f"it {'fell' if after < before else 'rose'} {means}."


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
    step = _round_step((max(loss for _, loss in points) or 1.0) / 4)
    highest = step * ceil(max(loss for _, loss in points) / step) or step
    last = max(1, *(at for at, _ in points))
    width = WIDTH - _LEFT - _RIGHT

    def line(curve: Sequence[Point]) -> str:
        return " ".join(f"{_LEFT + width * at / last:.1f},{_y(loss, highest):.1f}" for at, loss in _thinned(curve))

    along = max(1, int(_round_step(last / 5)))
    return TwoCurves(
        before=line(curves[0]) if curves[0] else "",
        after=line(curves[1]) if curves[1] else "",
        across=[Tick(_LEFT + width * at / last, str(at)) for at in range(0, last + 1, along)],
        up=[Tick(_y(step * at, highest), f"{step * at:.3g}") for at in range(round(highest / step) + 1)],
    )
