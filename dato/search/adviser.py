"""Advice: what a schedule would be judged to be, from the sensitivity model and what was judged so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dato.errors import DatoError
from dato.point import Point
from dato.prediction.calibration import Calibration
from dato.prediction.error_model import Sensitivity
from dato.prediction.latency_table import CallKind, LatencyTable, is_stock
from dato.schedule import Schedule
from dato.search.planner import plan
from dato.search.spaces import DepthSpace


class Advice:
    """An adviser of a search (see `dato.search.nsga2.Adviser`).

    Args:
        models: One for each length, all against the reference's.
        table: What predicts latencies.

    Attributes:
        unet_calls: What measuring the models cost, in UNet calls of one image.
    """

    def __init__(self, models: Sequence[Sensitivity], table: LatencyTable) -> None:
        self.models, self.table = list(models), table
        self.unet_calls = sum(model.unet_calls for model in self.models)
        self._calibration = Calibration(self.models)

    def guess(self, schedule: Schedule) -> tuple[float, float]:
        """Quality and latency (milliseconds per image); of what the models do not know the worst quality."""
        latency = self.table.predict(schedule)
        try:
            return self._calibration(schedule), latency
        except DatoError:
            return -math.inf, latency

    def tell(self, points: Sequence[Point]) -> None:
        """Learn from all that was judged so far; candidates that were given up early count as what they promised."""
        self._calibration = Calibration(self.models, [(p.schedule, p.quality) for p in points])

    def plans(self, space: DepthSpace, count: int) -> list[Schedule]:
        """About `count` schedules of least predicted error, faster than stock, at costs evenly far apart in ratio."""

        def cost(kind: CallKind) -> float:
            return self.table.calls[kind] + self.table.per_call

        models = [model for model in self.models if len(model) in space.calls]
        stock = self.table.predict(Schedule.full(max(space.calls), rungs=space.rungs))
        found: list[Schedule] = []
        for order in space.orders:
            # By itself each: which order does better where whole calls are few, the model does not know well.
            kinds = {"depths": space.depths, "orders": [order], "forecast": space.forecast}
            planned = [
                schedule
                for schedule in plan(models, cost, 100 * count, **kinds)
                if not is_stock(schedule) and self.table.predict(schedule) < stock
            ]
            found += self._spread(planned, -(-count // len(space.orders)))
        return list(dict.fromkeys(found))

    def _spread(self, schedules: Sequence[Schedule], count: int) -> list[Schedule]:
        if len(schedules) <= count:
            return list(schedules)
        costs = np.log([self.table.predict(schedule) for schedule in schedules])
        nearest = {int(np.abs(costs - target).argmin()) for target in np.linspace(costs[0], costs[-1], count)}
        return [schedules[i] for i in sorted(nearest)]
