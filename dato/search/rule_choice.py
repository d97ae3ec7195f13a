"""Which rules a guided search begins from, and which it validates: predictions choose among hundreds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from dato.evaluation.rules import rules
from dato.point import Point, non_dominated
from dato.schedule import Schedule
from dato.search.spaces import DepthSpace

APART = 0.01  # latencies closer than this share count as equal


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


def closest_rivals(
    schedules: Sequence[Schedule], guesses: tuple[np.ndarray, np.ndarray], points: Iterable[Point], count: int
) -> list[Schedule]:
    """Return the schedules that are expected to beat a front by most, or to fall short of it by least.

    A schedule is compared with the points that are as slow or slower: it beats a point if it is better and no slower.
    No two schedules that are returned have latencies within 1% of each other.

    Args:
        schedules: B schedules to choose from.
        guesses: Their qualities (-inf: never chosen) and latencies (milliseconds per image), (B,) each.
        points: Those that no other dominates are the front.
        count: How many are returned at most.
    """
    quality, latency = guesses
    front = non_dominated(points)
    # On a front the slower one is the better one. So the fastest of those that a schedule can beat has least quality.
    least = np.append([point.quality for point in front], math.inf)
    gains = quality - least[np.searchsorted([point.latency_ms for point in front], latency / (1 + APART))]
    chosen: list[int] = []
    for i in np.argsort(-gains, kind="stable"):
        if len(chosen) == count or not np.isfinite(gains[i]):
            break
        if all(abs(math.log(latency[i] / latency[j])) > APART for j in chosen):
            chosen.append(int(i))
    return [schedules[i] for i in chosen]
