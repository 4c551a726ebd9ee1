"""The loss curve of the page: every point inside the frame, sensible ticks, and true words."""

import pytest

from web.pages.chart import HEIGHT, WIDTH, loss_curve


@pytest.mark.parametrize(
    "losses",
    [
        [(1, 0.5), (2, 0.25)],
        [(step, 1 / step) for step in range(1, 3000)],
        [(1, 0.0), (2, 0.0)],
        [(10, 1e-9), (20, 3e4)],
        [(7, 0.3)] * 2,
    ],
)
def test_every_point_is_inside(losses: list[tuple[int, float]]) -> None:
    chart = loss_curve(losses)
    assert chart is not None
    for line in (chart.raw, chart.smooth):
        points = [tuple(map(float, point.split(","))) for point in line.split()]
        assert 2 <= len(points) <= 400
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert 2 <= len(chart.up) <= 8
    assert 2 <= len(chart.across) <= 8
    assert chart.rows[-1][0] == losses[-1][0]


def test_the_words_tell_what_the_line_shows() -> None:
    falling = loss_curve([(step, 1.0 if step < 50 else 0.1) for step in range(1, 101)])
    assert falling is not None
    assert falling.words == (
        "Loss over 100 steps: it fell from 1 in the first third to 0.1 in the last. The loss of a step depends mostly "
        "on how much noise was added to the picture in that step, so a level curve does not mean that nothing was "
        "learned, and a lower one does not mean a better LoRA: judge by pictures drawn with it."
    )
    # The loss of single steps scatters: no direction is told where there is none.
    scattered = loss_curve([(step, 0.4 + 0.3 * ((step * 7919 % 101) / 101 - 0.5)) for step in range(1, 61)])
    assert scattered is not None
    assert "no clear direction (from 0.389 in the first third to 0.4 in the last" in scattered.words
    rising = loss_curve([(step, 0.1 + step / 1000 + 0.01 * (step % 3)) for step in range(1, 101)])
    assert rising is not None
    assert "it rose from 0.12" in rising.words
    few = loss_curve([(step, 0.5) for step in range(1, 9)])
    assert few is not None
    assert "too few measurements" in few.words
    assert loss_curve([(1, 0.5)]) is None
