"""Charts show the numbers that they are given."""

import pytest

from dato.point import Point
from dato.report import plots
from dato.schedule import Schedule


def point(share, latency_ms, psnr):
    known = {} if share is None else {"flop_share": share}
    return Point(Schedule.full(4), psnr, latency_ms, 100 / latency_ms, {"psnr": psnr, **known})


@pytest.mark.parametrize(
    ("flops", "shares", "qualities", "label"),
    [
        (False, [0.1, 0.3, 0.5], [20.0, 30.0, 40.0], "share of stock's time (50 steps)"),
        (True, [0.2, 0.4], [30.0, 20.0], "share of stock's FLOPs (50 steps)"),
    ],
)
def test_quality_against_time_or_flops(monkeypatch, flops, shares, qualities, label):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    stock = Point(Schedule.full(4), 100.0, 100.0, 1.0, {"psnr": 100.0, "flop_share": 1.0}, steps=50)
    points = [point(0.4, 10.0, 20.0), point(None, 50.0, 40.0), point(0.2, 30.0, 30.0)]
    plots.quality_plot({"mine": points}, stock, ["psnr"], "plot.png", flops)
    panel = figures[0].axes[0]
    assert panel.lines[0].get_xdata() == pytest.approx(shares) and list(panel.lines[0].get_ydata()) == qualities
    assert panel.get_xlabel() == label
