"""The columns of all tables of points: in the terminal, in Markdown and on a run's page.

To show something more of each point, add a `Column` in `columns_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dato.front import Front
from dato.metrics import METRICS, label_of, text_of
from dato.plain_steps import PlainSteps, is_plain, plain_steps
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


SAID = "said_{}"  # in `Point.metrics`: what the point's front says of it, by a metric that was measured anew
TOTAL_MEMORY = "total_mb"  # in `Point.metrics`: the peak with the pipeline's weights, as SiTo's table 1 has it
FLOPS = "flop_share"  # in `Point.metrics`: the FLOPs of the UNet's calls as a share of stock's
SPREAD = "spread"  # in `Point.metrics`: the standard deviation of the quality over the validation images
SPREAD_MEANING = "Spread: standard deviation of the quality over images."
UNKNOWN = "–"
PLAIN_STEPS = "plain steps"
PLAIN_STEPS_MEANING = (
    "Plain steps: how many steps of the unchanged pipeline are as good, interpolated between those that were measured, "
    "and the speed-up over them."
)


def columns_of(
    points: Sequence[Point], stock: Point, metrics: Sequence[str], plain_by: str | None = None
) -> list[Column]:
    """Return the columns of a table, except those that have nothing to say of any of these points.

    Args:
        points: All points of the table.
        stock: The point that they are compared with.
        metrics: Names of the quality metrics to show, the objective first.
        plain_by: The metric by which plain steps are as good as a point. None: the points' `quality`.
    """
    columns = [
        Column("speed-up", lambda point: f"{point.speedup:.2f}x"),
        Column("ms", lambda point: f"{point.latency_ms:.{0 if point.latency_ms >= 10 else 2}f}"),
        Column("MB", _memory),
        Column("total MB", lambda point: f"{point.metrics[TOTAL_MEMORY]:.0f}" if TOTAL_MEMORY in point.metrics else ""),
        Column("compression", lambda point: _compression(point, stock)),
        Column("FLOPs", lambda point: f"{point.metrics[FLOPS]:.1%}" if FLOPS in point.metrics else ""),
        *_of_metric(metrics[0]),
        Column(SPREAD, lambda point: f"{point.metrics[SPREAD]:.2g}" if SPREAD in point.metrics else ""),
        *(column for name in metrics[1:] for column in _of_metric(name)),
        Column(
            PLAIN_STEPS if plain_by in (None, metrics[0]) else f"{PLAIN_STEPS} by {plain_by}",
            lambda point: _plain(point, points, stock, plain_by),
        ),
        Column("pruned", lambda point: f"{mean_ratio(point.schedule):.0%}" if any(point.schedule.ratios) else ""),
        Column("steps", lambda point: "" if point.steps is None else f"{point.steps}"),
        Column("order", lambda point: forecast_of(point.schedule)),
    ]
    return [column for column in columns if any(column.text(point) not in ("", UNKNOWN) for point in points)]


def metrics_of(front: Front) -> list[str]:
    """Return the names of a front's quality metrics: the objective, then the others by which stock was judged."""
    objective = str(front.conditions.get("quality", "quality"))
    return list(dict.fromkeys([objective, *(name for name in front.baseline.metrics if name in METRICS)]))


def plain_texts(plain: PlainSteps | None) -> tuple[str, str] | None:
    """Return plain steps and the speed-up over them as text: ("14", "2.1x"), or (">40", ">1.2x").

    A bound that says neither "faster" nor "slower", such as ">0.8x" or "<4.3x", is left out: ("<5", "").
    """
    if plain is None:
        return None
    speedup = round(plain.speedup, 1)
    says_nothing = (plain.bound == ">" and speedup <= 1) or (plain.bound == "<" and speedup >= 1)
    return f"{plain.bound}{plain.steps:.0f}", "" if says_nothing else f"{plain.bound}{speedup:.1f}x"


def _of_metric(name: str) -> list[Column]:
    """Return a metric's column, and one of what a point's front says, for tables in which it was measured anew."""
    return [
        Column(label_of(name), lambda point: _quality(point, name)),
        Column(f"said ({name})", lambda point: _quality(point, SAID.format(name), name)),
    ]


def _quality(point: Point, key: str, metric: str | None = None) -> str:
    return text_of(metric or key, point.metrics[key]) if key in point.metrics else ""


def _plain(point: Point, points: Sequence[Point], stock: Point, metric: str | None) -> str:
    """Return the plain steps that are as good as a point, and its speed-up over those; "" for plain steps."""
    # ToMeSD runs whole calls too, as many as stock, but is not stock.
    if point is stock or (is_plain(point) and point.schedule != stock.schedule):
        return ""
    texts = plain_texts(plain_steps(point, points, stock, metric))
    if texts is None:
        return UNKNOWN
    steps, speedup = texts
    return f"{steps} ({speedup})" if speedup else steps


def _memory(point: Point) -> str:
    return f"{point.metrics['peak_mb']:.0f}" if "peak_mb" in point.metrics else ""


def _compression(point: Point, stock: Point) -> str:
    """Return stock's memory divided by a point's."""
    if "peak_mb" not in point.metrics or "peak_mb" not in stock.metrics:
        return ""
    return f"{stock.metrics['peak_mb'] / point.metrics['peak_mb']:.2f}x"
