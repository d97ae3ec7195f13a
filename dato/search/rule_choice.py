"""Which rules a guided search begins from, and which it validates: predictions choose among hundreds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from dato.evaluation.rules import rules
from dato.point import Point, non_dominated
from dato.schedule import Schedule
from dato.search.guided import hypervolume_gain
from dato.search.spaces import DepthSpace

ERROR = 1.7  # dB; what predictions are off by, as a root mean square (docs/search.md)


def rules_of(space: DepthSpace) -> list[Schedule]:
    """Return every rule whose length, depth, order and forecast are of a space."""
    return rules(space.calls, space.rungs, space.depths[:-1], space.orders, space.forecast)


def best_of_each(
    schedules: Sequence[Schedule], guesses: tuple[np.ndarray, np.ndarray], stock_ms: float, speedups: Sequence[float]
) -> list[Schedule]:
    """Return the schedule of best predicted quality between each speed-up and the next; the fastest last.

    Args:
        schedules: B schedules to choose from.
        guesses: Their qualities and latencies (milliseconds per image), (B,) each.
        stock_ms: Stock's latency.
        speedups: In ascending order.
    """
    quality, latency = guesses
    best = []
    for slowest, fastest in pairwise(speedups):
        inside = [i for i, ms in enumerate(latency) if slowest <= stock_ms / ms < fastest]
        if inside:
            best.append(schedules[max(inside, key=lambda i: (quality[i], -latency[i]))])
    return best


def corrected(
    guesses: tuple[np.ndarray, np.ndarray], known: tuple[np.ndarray, np.ndarray], qualities: Sequence[float]
) -> np.ndarray:
    """Return predicted qualities, corrected by what the predictions of known schedules are off by.

    That depends on the speed-up: predictions may be too low for slow schedules and too high for fast ones. So it is
    interpolated by the logarithm of the latency.

    Args:
        guesses: The qualities and latencies of B schedules, (B,) each.
        known: Those of K schedules whose qualities are known, (K,) each.
        qualities: The K known qualities.
    """
    quality, latency = guesses
    off = np.asarray(qualities) - known[0]
    usable = [i for i in np.argsort(known[1]) if np.isfinite(off[i])]  # no model may cover a schedule
    if not usable:
        return quality.copy()
    return quality + np.interp(np.log(latency), np.log(known[1][usable]), off[usable])


def worth_validating(
    schedules: Sequence[Schedule],
    guesses: tuple[np.ndarray, np.ndarray],
    points: Iterable[Point],
    stock_ms: float,
    speedups: tuple[float, float],
    budget: float,
) -> list[Schedule]:
    """Return the schedules that are expected to raise the hypervolume of a front most for what they cost.

    They are chosen one after the other. Each one is chosen as if those before it were points of the expected quality.
    So what beats a point is chosen, and what fills a gap between two, and no second one that is like the first. If no
    further one is expected to add anything, all qualities are taken to be higher by `ERROR`. So what is left of the
    budget goes to schedules that may add something, because predictions err.

    Args:
        schedules: B schedules to choose from.
        guesses: Their qualities (-inf: never chosen) and latencies (milliseconds per image), (B,) each.
        points: Those that no other dominates are the front. The hypervolume counts from the lowest quality among them.
        stock_ms: Stock's latency.
        speedups: Where the front begins and ends. Schedules outside are not chosen.
        budget: What one image of each may cost together, in images of stock. It may not be used up: schedules that
            would add nothing even then are not returned.
    """
    front = non_dominated(points)
    least = min((point.quality for point in front), default=0.0)
    low, high = speedups
    offered = [
        Point(schedule, quality, ms, stock_ms / ms)
        for schedule, quality, ms in zip(schedules, *(values.tolist() for values in guesses), strict=True)
        if low <= stock_ms / ms <= high and math.isfinite(quality)
    ]
    left, chosen = budget * stock_ms, list[Point]()
    for error in (0.0, ERROR):
        front = non_dominated([*front, *(replace(one, quality=one.quality + error) for one in chosen)])
        while affordable := [one for one in offered if one.latency_ms <= left]:
            gains = [
                hypervolume_gain(front, one.quality + error, one.latency_ms, least, stock_ms / low)
                for one in affordable
            ]
            gain, best = max(zip(gains, affordable, strict=True), key=lambda pair: pair[0] / pair[1].latency_ms)
            if gain <= 0:
                break
            chosen.append(best)
            left -= best.latency_ms
            front = non_dominated([*front, replace(best, quality=best.quality + error)])
    return [one.schedule for one in chosen]
