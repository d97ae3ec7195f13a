"""Latency as a sum: each kind of UNet call is measured once, and a schedule takes what its calls take.

This holds because a call of a given depth, ratio and forecast is the same computation wherever it stands. How a table
is measured: `dato.prediction.latency_measure`; how far it is from the clock: `dato.prediction.latency_check`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dato.errors import DatoError
from dato.pruning import Pruning
from dato.schedule import Schedule
from dato.unet.cache import LAST


class CallKind(NamedTuple):
    """What the time of a call depends on, beside model, batch and machine.

    Attributes:
        depth: As in `Schedule`.
        ratio: As in `Schedule`; None where nothing is pruned in the whole schedule (no hook is on any block then), and
            at depth 0.
        order: Of the forecast that is made: lower than the schedule's while fewer values are known; 0 for whole calls.
        forecast: The rule that is followed: "polynomial" where the schedule's own does not apply, as at order 0.
    """

    depth: int
    ratio: float | None = None
    order: int = 0
    forecast: str = "polynomial"

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f", ratio {self.ratio:g}"
        rule = "" if self.forecast == "polynomial" else f" {self.forecast}"
        return f"depth {self.depth}{ratio}, order {self.order}{rule}"


def call_kinds(schedule: Schedule) -> tuple[CallKind, ...]:
    """The kind of each call of a schedule."""
    pruned = any(schedule.ratios)
    known: Counter[int] = Counter()  # values computed so far, by place of the cache
    kinds = []
    for depth, ratio, wanted in schedule.entries:
        order, forecast = 0, "polynomial"
        if depth < schedule.rungs:
            order = min(wanted, known[depth - 1] - 1)
            # Spectrum's prediction is made from the last feature by the UNet's head, even where that is handed back.
            if schedule.forecast == "chebyshev" and (order or depth == 0):
                order, forecast = 1, "chebyshev"
            elif schedule.forecast == "aligned" and order == wanted == 1 and depth:
                forecast = "aligned"
        kinds.append(CallKind(depth, ratio if pruned and depth else None, order, forecast))
        if depth:
            known.update(range(LAST, depth - 1))
    return tuple(kinds)


def is_stock(schedule: Schedule) -> bool:
    """Whether a schedule asks for nothing but whole calls, which the unpatched UNet runs as well."""
    return set(schedule.depths) == {schedule.rungs} and not any(schedule.ratios)


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds per image (of a batch, divided by its size) of each part of a generation.

    Attributes:
        rungs: Rungs of the UNet.
        calls: Of one call of the patched UNet, by kind.
        stock: Of one call of the UNet without a patch.
        per_call: Outside the UNet, for each of its calls: scheduler, guidance.
        per_image: Outside the UNet, once: text encoder, VAE.
        pruning: The settings that the ratios were measured with.
    """

    rungs: int
    calls: Mapping[CallKind, float]
    stock: float
    per_call: float
    per_image: float
    pruning: Pruning = field(default_factory=Pruning)

    def predict(self, schedule: Schedule) -> float:
        """Milliseconds per image of a schedule, of any length, end to end. Raises DatoError as `predict_unet`."""
        return self.predict_unet(schedule) + self.per_call * len(schedule) + self.per_image

    def predict_unet(self, schedule: Schedule) -> float:
        """Milliseconds per image that the UNet's calls take together; whole calls without a ratio run as stock.

        Raises:
            DatoError: if the table has no call of a kind that the schedule has, or other settings of pruning.
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
        """Plain JSON values; `calls` is a list of [depth, ratio, order, forecast, milliseconds]."""
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
        """The inverse of `to_dict`. Raises DatoError if something is missing or is no time."""
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
