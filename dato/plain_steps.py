"""How many plain steps are as good as a point: steps of the same sampler in the unchanged pipeline.

A speed-up over 50 steps says little to people who run 20. A point that is 7.6 times as fast as 50 steps, and as good as
14 of them, is 2.1 times as fast as what these people would run for the same quality.

Quality at any number of steps is interpolated between the references of a front that are stock with fewer steps. This
takes two assumptions:

- More steps are never worse. So the quality at n steps is the best of all references with at most n steps.
- Between two references, quality grows linearly with the logarithm of the number of steps, and time linearly with the
  number of steps.

The baseline itself is no such reference. For a metric that compares images with the baseline's, it is equal to itself,
and nothing can be interpolated towards that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from dato.point import Point

# References whose quality mostly falls with more steps measure nothing. By chance half of the pairs are out of order.
MOST_OUT_OF_ORDER = 0.25


@dataclass(frozen=True)
class PlainSteps:
    """The plain steps that are as good as a point.

    Attributes:
        steps: How many. It is interpolated, so it need not be whole.
        speedup: The time of so many plain steps divided by the point's.
        bound: "" if the steps are known. ">" if it takes more of them (the speed-up over those is higher), "<" if
            fewer are enough (the speed-up over those is lower).
    """

    steps: float
    speedup: float
    bound: str = ""


def plain_steps(
    point: Point, references: Iterable[Point], stock: Point, metric: str | None = None
) -> PlainSteps | None:
    """Return how many plain steps are as good as a point.

    Args:
        point: The point.
        references: Points with the speed-ups of the same run. Those that are stock with fewer steps are read.
        stock: The point of the reference's steps.
        metric: The quality to compare, a name in `Point.metrics`. None: `Point.quality`.

    Returns:
        None if it cannot be told: there is no stock with fewer steps, the sampler is another one than stock's, the
        metric was not measured, or more steps are not better by this metric.

    Example:
        >>> from dato import Schedule
        >>> stock, whole = Point(Schedule.full(50), 100, 50, 1, steps=50), Schedule.full
        >>> references = [Point(whole(20), 45, 20, 2.5, steps=20), Point(whole(10), 34, 10, 5, steps=10)]
        >>> searched = Point(Schedule.uniform(50, 7, 0, order=1), 39.5, 7, 50 / 7, steps=50)
        >>> result = plain_steps(searched, references, stock)
        >>> round(result.steps, 1), round(result.speedup, 1)
        (14.1, 2.0)
    """
    quality, most = _quality(point, metric), _quality(stock, metric)
    known = _fewer_steps(references, stock, metric)
    if not known or not math.isfinite(quality) or not math.isfinite(most) or _sampler(point) != _sampler(stock):
        return None
    last = _Reference(_steps(stock), most, 1 / stock.speedup)
    if _out_of_order([*known, last]) > MOST_OUT_OF_ORDER:
        return None
    if quality >= most:
        return _result(point, last.steps, last.share, ">" if quality > most else "")
    known = _with_best_so_far(known)
    if quality > known[-1].quality:
        return _result(point, known[-1].steps, known[-1].share, ">")
    if quality <= known[0].quality:
        return _result(point, known[0].steps, known[0].share, "<" if quality < known[0].quality else "")
    low, high = next((low, high) for low, high in pairwise(known) if low.quality < quality <= high.quality)
    weight = (quality - low.quality) / (high.quality - low.quality)
    steps = low.steps * (high.steps / low.steps) ** weight
    share = low.share + (high.share - low.share) * (steps - low.steps) / (high.steps - low.steps)
    return _result(point, steps, share, "")


def is_plain(point: Point) -> bool:
    """Return whether a point is the unchanged pipeline, with any number of steps."""
    schedule = point.schedule
    return all(depth == schedule.rungs for depth in schedule.depths) and not any(schedule.ratios)


@dataclass(frozen=True)
class _Reference:
    """Stock with fewer steps: how many, its quality, and its time as a share of the time of the speed-ups' base."""

    steps: int
    quality: float
    share: float


def _fewer_steps(points: Iterable[Point], stock: Point, metric: str | None) -> list[_Reference]:
    """Return stock with fewer steps, fewest first. Of equal numbers of steps the best stays."""
    best: dict[int, _Reference] = {}
    for point in points:
        steps, quality = _steps(point), _quality(point, metric)
        usable = is_plain(point) and _sampler(point) == _sampler(stock) and math.isfinite(quality)
        if not usable or not 0 < steps < _steps(stock):
            continue
        if steps not in best or quality > best[steps].quality:
            best[steps] = _Reference(steps, quality, 1 / point.speedup)
    return [best[steps] for steps in sorted(best)]


def _out_of_order(references: Sequence[_Reference]) -> float:
    """Return the share of pairs in which more steps are worse."""
    pairs = list(combinations(references, 2))
    return sum(more.quality < fewer.quality for fewer, more in pairs) / len(pairs)


def _with_best_so_far(references: Sequence[_Reference]) -> list[_Reference]:
    """Return the references with the quality that their steps or fewer reach."""
    best, result = -math.inf, []
    for reference in references:
        best = max(best, reference.quality)
        result.append(_Reference(reference.steps, best, reference.share))
    return result


def _result(point: Point, steps: float, share: float, bound: str) -> PlainSteps:
    return PlainSteps(steps, point.speedup * share, bound)


def _quality(point: Point, metric: str | None) -> float:
    return point.quality if metric is None else point.metrics.get(metric, math.nan)


def _steps(point: Point) -> int:
    """Return the steps of a point, or 0 if neither the point nor its front says how many."""
    return point.steps or point.conditions.get("steps") or 0


def _sampler(point: Point) -> str | None:
    return point.scheduler or point.conditions.get("scheduler_name")
