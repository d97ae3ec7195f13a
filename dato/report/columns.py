"""The columns of all tables of points: in the terminal, in Markdown and on a run's page.

To show something more of each point, add a `Column` in `columns_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dato.front import Front
from dato.metrics import METRICS, label_of, text_of
from dato.point import Point
from dato.report.schedule_text import forecast_of, mean_ratio


@dataclass(frozen=True)
class Column:
    """One column of a table of points.

    Attributes:
        heading: Its title, with the unit.
        text: What it says of a point; "" if there is nothing to say.
    """

    heading: str
    text: Callable[[Point], str]


def columns_of(points: Sequence[Point], stock: Point, metrics: Sequence[str]) -> list[Column]:
    """Return the columns of a table, except those that have nothing to say of any of these points.

    Args:
        points: All points of the table.
        stock: The point that they are compared with.
        metrics: Names of the quality metrics to show, the objective first.
    """
    columns = [
        Column("speed-up", lambda point: f"{point.speedup:.2f}x"),
        Column("ms", lambda point: f"{point.latency_ms:.{0 if point.latency_ms >= 10 else 2}f}"),
        Column("MB", _memory),
        Column("compression", lambda point: _compression(point, stock)),
        *(Column(label_of(name), lambda point, name=name: _quality(point, name)) for name in metrics),
        Column("pruned", lambda point: f"{mean_ratio(point.schedule):.0%}" if any(point.schedule.ratios) else ""),
        Column("steps", lambda point: "" if point.steps is None else f"{point.steps}"),
        Column("order", lambda point: forecast_of(point.schedule)),
    ]
    return [column for column in columns if any(column.text(point) for point in points)]


def metrics_of(front: Front) -> list[str]:
    """Return the names of a front's quality metrics: the objective, then the others by which stock was judged."""
    objective = str(front.conditions.get("quality", "quality"))
    return list(dict.fromkeys([objective, *(name for name in front.baseline.metrics if name in METRICS)]))


def _quality(point: Point, metric: str) -> str:
    return text_of(metric, point.metrics[metric]) if metric in point.metrics else ""


def _memory(point: Point) -> str:
    return f"{point.metrics['peak_mb']:.0f}" if "peak_mb" in point.metrics else ""


def _compression(point: Point, stock: Point) -> str:
    """Return stock's memory divided by a point's."""
    if "peak_mb" not in point.metrics or "peak_mb" not in stock.metrics:
        return ""
    return f"{stock.metrics['peak_mb'] / point.metrics['peak_mb']:.2f}x"
