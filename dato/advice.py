"""Advice: what a schedule would be judged to be, from the sensitivity model and what was judged so far.

The sensitivity model says what error a schedule adds to the final latent of stock with its own number of steps. That
many steps have an error of their own, against the reference's: how large it is, stock's judged images of those steps
tell. The two add up, since nothing makes them point the same way:

    x = -10 log10(c error + d_steps),    quality = a + b x,    b >= 0

c, a and b are fitted to what was judged so far; for PSNR itself a = 0 and b = 1 would be exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dato.front import Point
from dato.latency import CallKind, LatencyTable, is_stock
from dato.planning import plan
from dato.schedule import Schedule
from dato.sensitivity import Sensitivity
from dato.space import DepthSpace

_SCALES = np.logspace(-4, 4, 81)  # of c
_PRIOR = 1.0  # how many judged points the belief that b = 1 counts as, where the objective is PSNR
_FLOOR = 1e-10  # 100 dB


class Advice:
    """An adviser of a search (see `dato.search.Adviser`).

    Args:
        models: Number of UNet calls -> sensitivity model of that length.
        table: What predicts latencies.
        objective: Name of the quality metric.

    Attributes:
        unet_calls: What the models cost, in UNet calls of one image.
    """

    def __init__(self, models: Mapping[int, Sensitivity], table: LatencyTable, objective: str = "psnr") -> None:
        self.models, self.table, self.objective = dict(models), table, objective
        self.unet_calls = sum(model.unet_calls for model in self.models.values())
        self._errors: dict[Schedule, float] = {}
        self._own: dict[int, float] = {}
        self._scale, self._line = 1.0, (0.0, 1.0)

    def begun(self) -> Advice:
        """The same models, with nothing learnt from judged points."""
        return Advice(self.models, self.table, self.objective)

    def knows(self, schedule: Schedule) -> bool:
        """Whether the models have every call of a schedule."""
        model = self.models.get(len(schedule))
        if model is None or (any(schedule.ratios) and schedule.pruning != model.pruning):
            return False
        known = {(d, 0.0) for d in model.depths} | set(model.pruned)
        return all((depth, ratio) in known for depth, ratio, _ in schedule.entries)

    def guess(self, schedule: Schedule) -> tuple[float, float]:
        """Quality and latency; a schedule that the models do not know is the worst."""
        if not self.knows(schedule):
            return -math.inf, self.table.predict(schedule)
        a, b = self._line
        return a + b * self._level(schedule, self._scale), self.table.predict(schedule)

    def tell(self, points: Sequence[Point]) -> None:
        """Learn from all that was judged so far; candidates that were given up early are taken as they are."""
        points = [p for p in points if math.isfinite(p.quality) and self.knows(p.schedule)]
        stock = {len(p.schedule): p.metrics["psnr"] for p in points if is_stock(p.schedule)}
        self._own = _interpolated(stock, self.models)
        points = [p for p in points if not is_stock(p.schedule)]
        if len(points) < 3:
            return
        seen = np.array([p.metrics["psnr"] for p in points])
        wrong = [np.abs(seen - [self._level(p.schedule, scale) for p in points]).mean() for scale in _SCALES]
        self._scale = float(_SCALES[int(np.argmin(wrong))])
        levels = np.array([self._level(p.schedule, self._scale) for p in points])
        self._line = _fitted(levels, np.array([p.quality for p in points]), self.objective == "psnr")

    def plans(self, space: DepthSpace, count: int) -> list[Schedule]:
        """About `count` schedules of the space, of least predicted error for budgets from the least to stock's."""

        def cost(kind: CallKind) -> float:
            # Kinds that the table lacks are those of forecasts that nobody searches.
            return self.table.calls.get(kind, math.inf) + self.table.per_call

        found = []
        for calls, model in self.models.items():
            if calls in space.calls:
                found += plan(model, cost, count, depths=space.depths, orders=space.orders, forecast=space.forecast)
        guesses = {schedule: self.guess(schedule) for schedule in found}
        front: list[Schedule] = []
        for schedule in sorted(found, key=lambda s: (guesses[s][1], -guesses[s][0])):
            if not front or guesses[schedule][0] > guesses[front[-1]][0]:
                front.append(schedule)
        return _spread(front, [guesses[s][1] for s in front], count)

    def _level(self, schedule: Schedule, scale: float) -> float:
        """What PSNR would be, in dB."""
        if schedule not in self._errors:
            self._errors[schedule] = self.models[len(schedule)].error(schedule)
        own = self._own.get(len(schedule), 0.0)
        return -10 * math.log10(max(_FLOOR, scale * self._errors[schedule] + own))


def _interpolated(psnr: Mapping[int, float], lengths: Mapping[int, object]) -> dict[int, float]:
    """Calls -> mean square error of stock with so many calls, from the PSNR of some lengths; a power law in between."""
    known = sorted((calls, value) for calls, value in psnr.items() if value < 100)
    most = max(lengths, default=0)
    if not known:
        return {}
    at = np.log([calls for calls, _ in known])
    guess: Callable[[int], float] = lambda calls: float(np.interp(math.log(calls), at, [v for _, v in known]))  # noqa: E731
    # The reference has no error of its own.
    return {calls: 0.0 if calls == most else 10 ** (-psnr.get(calls, guess(calls)) / 10) for calls in lengths}


def _fitted(levels: np.ndarray, quality: np.ndarray, same: bool) -> tuple[float, float]:
    """(a, b) of quality = a + b level by least squares, b >= 0; where both are PSNR, b is drawn to 1."""
    x, y = levels - levels.mean(), quality - quality.mean()
    prior = _PRIOR * max(1.0, float(x @ x) / len(x)) if same else 0.0
    b = max(0.0, float(x @ y + prior) / max(1e-9, float(x @ x) + prior))
    return float(quality.mean() - b * levels.mean()), b


def _spread(schedules: Sequence[Schedule], costs: Sequence[float], count: int) -> list[Schedule]:
    """`count` of them, at costs as evenly far apart (in ratio) as there are."""
    if len(schedules) <= count:
        return list(schedules)
    logs = np.log(costs)
    chosen = {int(np.abs(logs - target).argmin()) for target in np.linspace(logs[0], logs[-1], count)}
    return [schedules[i] for i in sorted(chosen)]
