"""Predict latency as a sum: each kind of UNet call is measured once, and a schedule takes what its calls take.

This holds because calls of the same depth, ratio and forecast are the same computation.
`dato.prediction.latency_measure` measures a table, and `dato.prediction.latency_check` compares one with the clock.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dato.call import forecasts_made
from dato.errors import DatoError
from dato.forecast_rule import POLYNOMIAL
from dato.pruning import Pruning
from dato.schedule import Schedule


class CallKind(NamedTuple):
    """What the time of a call depends on, besides model, batch and machine.

    Attributes:
        depth: As in `Schedule`.
        ratio: As in `Schedule`; None at depth 0, and if the whole schedule prunes nothing (then no block has a hook).
        order: The order of the forecast that is made (`dato.call.Call.order`).
        forecast: The rule by which it is made (`dato.call.Call.forecast`).
    """

    depth: int
    ratio: float | None = None
    order: int = 0
    forecast: str = POLYNOMIAL.name

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f", ratio {self.ratio:g}"
        rule = "" if self.forecast == POLYNOMIAL.name else f" {self.forecast}"
        return f"depth {self.depth}{ratio}, order {self.order}{rule}"


def call_kinds(schedule: Schedule) -> tuple[CallKind, ...]:
    """Return the kind of each call of a schedule."""
    schedule = schedule.canonical()
    pruned, rule = any(schedule.ratios), schedule.rule
    made = forecasts_made(schedule.depths, schedule.orders, schedule.rungs, schedule.forecast)
    kinds = []
    for depth, ratio, (order, forecast) in zip(schedule.depths, schedule.ratios, made, strict=True):
        if rule.caches_last_feature and depth == 0:
            # The UNet's head runs at every such call, even if the feature is reused as it is.
            order, forecast = 1, rule.name
        kinds.append(CallKind(depth, ratio if pruned and depth else None, order, forecast))
    return tuple(kinds)


def is_stock(schedule: Schedule) -> bool:
    """Return whether all calls are whole and prune nothing, so that the unpatched UNet runs the schedule as well."""
    return set(schedule.depths) == {schedule.rungs} and not any(schedule.ratios)


@dataclass(frozen=True)
class LatencyTable:
    """The milliseconds per image that each part of a generation takes (those of a batch, divided by its size).

    Attributes:
        rungs: The number of rungs of the UNet.
        calls: The time of one call of the patched UNet, by kind.
        stock: The time of one call of the UNet without a patch.
        per_call: The time outside the UNet for each of its calls: scheduler, guidance.
        per_image: The time outside the UNet for each image: text encoder, VAE.
        pruning: The settings that the ratios were measured with.
    """

    rungs: int
    calls: Mapping[CallKind, float]
    stock: float
    per_call: float
    per_image: float
    pruning: Pruning = field(default_factory=Pruning)

    def predict(self, schedule: Schedule) -> float:
        """Return the milliseconds per image of a schedule of any length, end to end.

        Raises:
            DatoError: as `predict_unet`.
        """
        return self.predict_unet(schedule) + self.per_call * len(schedule) + self.per_image

    def predict_unet(self, schedule: Schedule) -> float:
        """Return the milliseconds per image that all calls of the UNet take. A stock schedule takes stock's time.

        Raises:
            DatoError: if a call's kind is not in the table, or the table has other settings of pruning.
        """
        schedule = schedule.for_rungs(self.rungs)
        if is_stock(schedule):
            return self.stock * len(schedule)
        if any(schedule.ratios) and schedule.pruning != self.pruning:
            raise DatoError("latency table: it was measured with other settings of pruning than the schedule's")
        counts = Counter(call_kinds(schedule))
        for kind in counts:
            if kind not in self.calls:
                raise DatoError(f"latency table: it has no call of {kind}")
        return sum(count * self.calls[kind] for kind, count in counts.items())

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `calls` is a list of [depth, ratio, order, forecast, milliseconds]."""
        return {
            "rungs": self.rungs,
            "stock": self.stock,
            "per_call": self.per_call,
            "per_image": self.per_image,
            "pruning": self.pruning.to_dict(),
            "calls": [[*kind, ms] for kind, ms in self.calls.items()],
        }

    @classmethod
    def from_dict(cls, data: Any) -> LatencyTable:
        """Make a table of what `to_dict` returned. Raise DatoError if something is missing or is no time."""
        try:
            calls = {CallKind(*kind): _time(ms) for *kind, ms in data["calls"]}
            times = {name: _time(data[name]) for name in ("stock", "per_call", "per_image")}
            return cls(data["rungs"], calls, **times, pruning=Pruning.from_dict(data["pruning"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DatoError(f"not a latency table: {type(error).__name__}: {error}") from None


def _time(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{value!r} is no time in milliseconds")
    return float(value)
