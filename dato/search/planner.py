"""Plan schedules of least predicted error for every budget; `dato.search.beam` finds them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from dato.errors import DatoError
from dato.forecast_rule import POLYNOMIAL, RULES
from dato.prediction.error_model import Sensitivity
from dato.prediction.latency_table import CallKind
from dato.schedule import Schedule
from dato.search.beam import Beam

BINS = 150  # classes of cost


def plan(
    sensitivity: Sensitivity | Sequence[Sensitivity],
    cost: Callable[[CallKind], float],
    count: int,
    *,
    depths: Sequence[int] | None = None,
    orders: Sequence[int] = (0,),
    forecast: str = POLYNOMIAL.name,
    bins: int = BINS,
    width: int = 1,
) -> list[Schedule]:
    """Return schedules of least predicted error, spread evenly over the budgets from the cheapest to stock's.

    Args:
        sensitivity: The error model; for several numbers of steps one model each, `against` the same reference.
        cost: Returns the cost of one call, in any unit, as `LatencyTable.calls.__getitem__` does.
        count: The greatest number of schedules; the front may have fewer.
        depths: The depths to choose from; None: all that the model covers. The whole UNet is always among them.
        orders: The orders of forecasts to choose from. Each schedule has one of them.
        forecast: What orders above 0 mean (see `Schedule`).
        bins: The number of classes of cost in which labels are compared.
        width: The number of labels that are kept of each class of cost and age.

    Returns:
        Schedules that are non-dominated in cost and predicted error, the cheapest first.

    Raises:
        DatoError: if the models do not cover a depth, or forecasts by this rule cannot be planned.
    """
    models = [sensitivity] if isinstance(sensitivity, Sensitivity) else list(sensitivity)
    if not models:
        raise DatoError("plan: there is no sensitivity model to plan with")
    depths = sorted({*(models[0].depths if depths is None else depths), models[0].rungs})
    for model in models:
        unknown = sorted(set(depths) - set(model.depths))
        if unknown:
            raise DatoError(f"plan: depth {unknown[0]} was not measured; known are {model.depths}")
    if not RULES[forecast].can_be_planned and any(orders):
        raise DatoError("plan: a Chebyshev forecast reads all of the past, which cannot be planned; name another")
    if count < 1 or bins < 1 or width < 1 or not orders:
        raise DatoError("plan: count, bins and width are at least 1, and there is at least one order")
    scored = []
    for model, order in itertools.product(models, sorted(set(orders))):
        for price, schedule in Beam(model, cost, depths, order, forecast).schedules(bins, width):
            # Sums of the same costs in another order differ in their last bits.
            scored.append((float(f"{price:.9g}"), model.error(schedule), schedule))
    scored.sort(key=lambda candidate: candidate[:2])
    front, best = [], math.inf
    for price, error, schedule in scored:
        if error < best:
            front.append((price, schedule))
            best = error
    return _spread(front, count)


def _spread(front: Sequence[tuple[float, Schedule]], count: int) -> list[Schedule]:
    """Return `count` schedules whose prices are as evenly spaced as possible."""
    if len(front) <= count:
        return [schedule for _, schedule in front]
    prices = np.array([price for price, _ in front])
    chosen = {int(np.abs(prices - target).argmin()) for target in np.linspace(prices[0], prices[-1], count)}
    return [front[i][1] for i in sorted(chosen)]
