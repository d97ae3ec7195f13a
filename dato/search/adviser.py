"""Predict the quality and latency of schedules that a search has not judged, and plan good ones to start with."""

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
        models: One error model for each number of calls, all against the reference's.
        table: The table that predicts latencies.

    Attributes:
        unet_calls: What measuring the models cost, in UNet calls of one image.
    """

    def __init__(self, models: Sequence[Sensitivity], table: LatencyTable) -> None:
        self.models, self.table = list(models), table
        self.unet_calls = sum(model.unet_calls for model in self.models)
        self._calibration = Calibration(self.models)

    def guess(self, schedule: Schedule) -> tuple[float, float]:
        """Return quality (-inf if no model covers the schedule) and latency (milliseconds per image)."""
        latency = self.table.predict(schedule)
        try:
            return self._calibration(schedule), latency
        except DatoError:
            return -math.inf, latency

    def guess_all(self, schedules: Sequence[Schedule]) -> tuple[np.ndarray, np.ndarray]:
        """Return the qualities and latencies of schedules, (B,) each; see `guess`."""
        latencies = np.array([self.table.predict(schedule) for schedule in schedules])
        return self._calibration.predict(schedules), latencies

    @property
    def deviation(self) -> float | None:
        """The root mean square error of the guesses of judged schedules; None before there is a fit."""
        return self._calibration.deviation

    def tell(self, points: Sequence[Point]) -> None:
        """Learn from all points that were judged so far. Candidates given up early count with their estimates."""
        self._calibration = Calibration(self.models, [(p.schedule, p.quality) for p in points])

    def plans(self, space: DepthSpace, count: int) -> list[Schedule]:
        """Return about `count` schedules of least predicted error, faster than stock, at evenly spaced log costs."""

        def cost(kind: CallKind) -> float:
            return self.table.calls[kind] + self.table.per_call

        models = [model for model in self.models if len(model) in space.calls]
        stock = self.table.predict(Schedule.full(max(space.calls), rungs=space.rungs))
        plans: list[Schedule] = []
        for order in space.orders:
            # Each order has plans of its own, because the model compares orders badly if whole calls are few.
            choices = {"depths": space.depths, "orders": [order], "forecast": space.forecast}
            planned = [
                schedule
                for schedule in plan(models, cost, 100 * count, **choices)
                if not is_stock(schedule) and self.table.predict(schedule) < stock
            ]
            plans += self._spread(planned, -(-count // len(space.orders)))
        return list(dict.fromkeys(plans))

    def _spread(self, schedules: Sequence[Schedule], count: int) -> list[Schedule]:
        """Return `count` schedules whose log costs are as evenly spaced as possible."""
        if len(schedules) <= count:
            return list(schedules)
        costs = np.log([self.table.predict(schedule) for schedule in schedules])
        nearest = {int(np.abs(costs - target).argmin()) for target in np.linspace(costs[0], costs[-1], count)}
        return [schedules[i] for i in sorted(nearest)]
