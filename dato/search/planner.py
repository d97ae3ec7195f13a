"""Planning: the schedules of least predicted error for every budget, by dynamic programming over the calls.

A partial schedule's *label* is what it costs, the error and doubt that it has summed up, and what lies in its cache:
which calls computed what each depth reads, and how wrong those were. Call by call every label is continued by every
depth; of those that are alike in the age of the deepest cache and in cost, the ones of least error are kept. Errors are
vectors that may cancel, so a label that is dropped might have won later: with room for all labels the plan is exact,
and with a few for each cost and age it is a beam search.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from dato.errors import DatoError
from dato.prediction.error_model import DOUBT, Sensitivity
from dato.prediction.latency_table import CallKind
from dato.schedule import Schedule

BINS = 150  # of cost
LENGTH = 48  # of the projections that are planned with


def plan(
    sensitivity: Sensitivity | Sequence[Sensitivity],
    cost: Callable[[CallKind], float],
    count: int,
    *,
    depths: Sequence[int] | None = None,
    orders: Sequence[int] = (0,),
    forecast: str = "polynomial",
    bins: int = BINS,
    width: int = 1,
) -> list[Schedule]:
    """Schedules of least predicted error, spread evenly over the budgets from the cheapest to the whole.

    Args:
        sensitivity: The model; of several numbers of steps one of each, `against` the same reference.
        cost: Of one call, in any unit, as `LatencyTable.calls.__getitem__`.
        count: How many schedules at most; fewer where the front has fewer.
        depths: To choose from; None: all that the model knows. The whole UNet is always among them.
        orders: Of forecasts, to choose from; a schedule has one.
        forecast: What orders above 0 mean (see `Schedule`); "chebyshev" cannot be planned.
        bins: Labels of a call are compared within so many classes of cost.
        width: How many are kept of each class of cost and age.

    Returns:
        Non-dominated in cost and predicted error, the cheapest first.

    Raises:
        DatoError: if a depth is not known, or forecasts cannot be planned.
    """
    models = [sensitivity] if isinstance(sensitivity, Sensitivity) else list(sensitivity)
    if not models:
        raise DatoError("plan: there is no sensitivity model to plan with")
    depths = sorted({*(models[0].depths if depths is None else depths), models[0].rungs})
    for model in models:
        unknown = sorted(set(depths) - set(model.depths))
        if unknown:
            raise DatoError(f"plan: depth {unknown[0]} was not measured; known are {model.depths}")
    if forecast == "chebyshev" and any(orders):
        raise DatoError("plan: a Chebyshev forecast reads all of the past, which cannot be planned; name another")
    if count < 1 or bins < 1 or width < 1 or not orders:
        raise DatoError("plan: count, bins and width are at least 1, and there is at least one order")
    scored = []
    for model, order in itertools.product(models, sorted(set(orders))):
        for price, schedule in _plan(model, cost, depths, order, forecast if order else "polynomial", bins, width):
            # Sums of the same costs in another order differ in their last bits.
            scored.append((float(f"{price:.9g}"), model.error(schedule), schedule))
    scored.sort(key=lambda each: each[:2])
    front, best = [], math.inf
    for price, error, schedule in scored:
        if error < best:
            front.append((price, schedule))
            best = error
    return _spread(front, count)


def _spread(front: Sequence[tuple[float, Schedule]], count: int) -> list[Schedule]:
    """`count` of them, at prices as evenly far apart as there are."""
    if len(front) <= count:
        return [schedule for _, schedule in front]
    prices = np.array([price for price, _ in front])
    chosen = {int(np.abs(prices - target).argmin()) for target in np.linspace(prices[0], prices[-1], count)}
    return [front[i][1] for i in sorted(chosen)]


def _plan(
    model: Sensitivity,
    cost: Callable[[CallKind], float],
    depths: Sequence[int],
    order: int,
    forecast: str,
    bins: int,
    width: int,
) -> list[tuple[float, Schedule]]:
    """(cost, schedule) of the labels that are left at the end."""
    calls, rungs, times = len(model), model.rungs, np.array(model.times)
    partial = [depth for depth in depths if depth < rungs]
    stale = {depth: _shortened(model.stale[depth]) for depth in partial}
    doubts = DOUBT * np.abs(model.weights)
    k = next(iter(stale.values())).shape[-1] if partial else 1
    prices = {
        (depth, least): cost(_kind(depth, least, order, forecast, rungs))
        for depth in depths
        for least in (range(order + 1) if depth < rungs else (0,))
    }
    dearest = sum(max(prices.values()) for _ in range(calls))

    # Labels: depths so far, cost, error; of each partial depth its last sources (latest first), how many there are,
    # how often it was computed, and the sources' own errors.
    slots = order + 1
    path = np.full((1, 1), len(depths) - 1, dtype=np.int8)
    price, error = np.array([prices[rungs, 0]]), np.zeros((1, k), np.float32) + _shortened(model.offset)
    source = np.zeros((1, len(partial), slots), dtype=np.int64)
    known = np.ones((1, len(partial)), dtype=np.int64)
    computed = np.ones((1, len(partial)), dtype=np.int64)
    carried = np.zeros((1, len(partial), slots, k), np.float32)
    doubt, doubted = np.zeros(1), np.zeros((1, len(partial), slots))
    for call in range(1, calls):
        grown = []
        for number, depth in enumerate(depths):
            total, length, paid = np.zeros_like(error), np.zeros(len(price)), prices[depth, 0]
            if depth < rungs:
                weights = _weights(times, source[:, number], known[:, number], call)
                errors = stale[depth][call][source[:, number]] + carried[:, number]
                total = np.einsum("ls,lsk->lk", weights, errors)
                sizes = model.sizes[depth][call][source[:, number]] + doubted[:, number]
                length = (np.abs(weights) * sizes).sum(axis=1)
                paid = np.array([prices[depth, least] for least in range(slots)])[
                    np.minimum(computed[:, number] - 1, order)
                ]
            summed = error + np.float32(model.weights[call]) * total
            grown.append((total, length, price + paid, summed, doubt + doubts[call] * length))
        which = np.repeat(np.arange(len(depths)), len(price))
        parent = np.tile(np.arange(len(price)), len(depths))
        total, length, new_price, new_error, new_doubt = map(np.concatenate, zip(*grown, strict=True))
        deepest = source[:, -1, 0] if partial else np.zeros(len(price), dtype=np.int64)
        latest = np.where(np.array(depths)[which] == rungs, call, deepest[parent])
        size = np.square(new_error).sum(axis=1) + np.square(new_doubt)
        kept = _best(new_price, size, latest, dearest / bins, width)
        which, parent, total, length = which[kept], parent[kept], total[kept], length[kept]
        price, error, doubt = new_price[kept], new_error[kept], new_doubt[kept]
        path = np.concatenate([path[parent], which[:, None].astype(np.int8)], axis=1)
        source, known, computed = source[parent], known[parent], computed[parent]
        carried, doubted = carried[parent], doubted[parent]
        for place, depth in enumerate(partial):
            refreshed = np.flatnonzero(np.array(depths)[which] > depth)
            again = times[source[refreshed, place, 0]] == times[call]  # of one timestep the later value counts
            pushed = refreshed[~again]
            source[pushed, place, 1:] = source[pushed, place, :-1]
            carried[pushed, place, 1:] = carried[pushed, place, :-1]
            doubted[pushed, place, 1:] = doubted[pushed, place, :-1]
            known[pushed, place] = np.minimum(known[pushed, place] + 1, slots)
            computed[refreshed, place] += 1
            source[refreshed, place, 0] = call
            carried[refreshed, place, 0] = total[refreshed]
            doubted[refreshed, place, 0] = length[refreshed]
    alphabet = np.array(depths)
    return [
        (float(paid), Schedule(alphabet[row].tolist(), None, _order(alphabet[row], rungs, order), rungs, forecast=rule))
        for paid, row in zip(price, path, strict=True)
        for rule in [forecast if _order(alphabet[row], rungs, order) else "polynomial"]
    ]


def _order(depths: np.ndarray, rungs: int, order: int) -> int:
    """Where nothing is forecast, the order has no say, and one schedule has one spelling."""
    return 0 if (depths == rungs).all() else order


def _kind(depth: int, least: int, order: int, forecast: str, rungs: int) -> CallKind:
    """As `dato.prediction.latency_table.call_kinds` has it, where `least` + 1 values are known at least."""
    if depth == rungs or not least:
        return CallKind(depth)
    aligned = forecast == "aligned" and least == order == 1 and depth
    return CallKind(depth, None, least, "aligned" if aligned else "polynomial")


def _shortened(vectors: np.ndarray | float) -> np.ndarray:
    """Projections of fewer numbers."""
    k = vectors.shape[-1] if np.ndim(vectors) else 0
    if k <= LENGTH:
        return np.asarray(vectors, dtype=np.float32)
    mix = np.random.default_rng(0).standard_normal((k, LENGTH)) / LENGTH**0.5
    return (vectors @ mix).astype(np.float32)


def _weights(times: np.ndarray, source: np.ndarray, known: np.ndarray, call: int) -> np.ndarray:
    """(labels, slots) the weights of the polynomial through each label's sources, those that it has."""
    labels, slots = source.shape
    at, weights = times[source], np.ones((labels, slots), np.float32)
    for i in range(slots):
        for j in range(slots):
            if i != j:
                both = (known > i) & (known > j)
                way = np.where(both, at[:, i] - at[:, j], 1.0)
                weights[:, i] *= np.where(both, (times[call] - at[:, j]) / way, 1.0)
        weights[known <= i, i] = 0.0
    return weights


def _best(price: np.ndarray, size: np.ndarray, latest: np.ndarray, bin_size: float, width: int) -> np.ndarray:
    """Indices of the labels of least error in each class of cost and age, as many as `width` of each."""
    place = np.floor(price / bin_size).astype(np.int64)
    rank = np.lexsort((price, size, latest, place))
    place, latest = place[rank], latest[rank]
    begins = np.ones(len(rank), dtype=bool)
    begins[1:] = (place[1:] != place[:-1]) | (latest[1:] != latest[:-1])
    first = np.maximum.accumulate(np.where(begins, np.arange(len(rank)), 0))
    return rank[np.arange(len(rank)) - first < width]
