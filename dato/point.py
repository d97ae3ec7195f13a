"""A point: a schedule with what was measured of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dato.errors import DatoError
from dato.pruning import Pruning
from dato.schedule import Schedule

_POINT_KEYS = ("depths", "ratios", "orders", "quality", "latency_ms", "speedup", "metrics")


_OWN_KEYS = ("forecast", "steps", "scheduler")  # a point may have them


@dataclass(frozen=True)
class Point:
    """A schedule with what was measured of it.

    Attributes:
        schedule: What runs.
        quality: The search's quality metric; higher is better.
        latency_ms: Milliseconds per image.
        speedup: Stock's latency divided by this one's.
        metrics: Further measures by name.
        steps: Steps of the sampler for which the schedule is meant; None: the front's.
        scheduler: The sampler, a name of `dato.samplers.SAMPLERS` or diffusers' class; None: the front's.
        conditions: Those of the front that it is in; no part of the point itself.
    """

    schedule: Schedule
    quality: float
    latency_ms: float
    speedup: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    steps: int | None = None
    scheduler: str | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def kwargs(self) -> dict[str, Any]:
        """What the pipeline has to be called with for this schedule: `pipe(prompt, **point.kwargs)`."""
        return {} if self.steps is None else {"num_inference_steps": self.steps}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `rungs` and `pruning` stand once in the front."""
        schedule = self.schedule.to_dict()
        return {
            **{key: schedule[key] for key in ("depths", "ratios", "orders", "forecast") if key in schedule},
            **({} if self.steps is None else {"steps": self.steps}),
            **({} if self.scheduler is None else {"scheduler": self.scheduler}),
            "quality": self.quality,
            "latency_ms": self.latency_ms,
            "speedup": self.speedup,
            "metrics": dict(self.metrics),
        }


def non_dominated(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points that no other one beats in quality and latency, latency ascending; one of equals is kept."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.latency_ms, -p.quality)):
        if math.isfinite(point.quality) and (not front or point.quality > front[-1].quality):
            front.append(point)
    return tuple(front)


def competing(points: Iterable[Point], floor: float | None) -> tuple[Point, ...]:
    """The non-dominated ones of the points that are good enough and faster than stock; of all, if none is."""
    points = list(points)
    good = [point for point in points if floor is None or point.quality >= floor] or points
    # Against stock itself nothing that is slower can stand, however the clock wandered when both were timed.
    return non_dominated([point for point in good if point.speedup > 1] or good)


def point_from_dict(name: str, data: Any, rungs: Any, pruning: Pruning) -> Point:
    if not isinstance(data, dict):
        raise DatoError(f"front: {name} must be an object")
    check_keys(name, data, _POINT_KEYS, _OWN_KEYS)
    forecast = data.get("forecast", "polynomial")
    try:
        schedule = Schedule(data["depths"], data["ratios"], data["orders"], rungs, pruning, forecast)
    except DatoError as error:
        raise DatoError(f"front: {name}: {error}") from None
    if not isinstance(data["metrics"], dict):
        raise DatoError(f"front: {name}: metrics must be an object")
    numbers = {key: data[key] for key in ("quality", "latency_ms", "speedup")} | data["metrics"]
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e300 < value < 1e300:
            raise DatoError(f"front: {name}: {key} must be a finite number, not {value!r}")
    if data["latency_ms"] <= 0 or data["speedup"] <= 0:
        raise DatoError(f"front: {name}: latency_ms and speedup must be above 0")
    steps, scheduler = data.get("steps"), data.get("scheduler")
    if not (steps is None or (isinstance(steps, int) and not isinstance(steps, bool) and steps > 0)):
        raise DatoError(f"front: {name}: steps must be a whole number above 0, not {steps!r}")
    if not (scheduler is None or isinstance(scheduler, str)):
        raise DatoError(f"front: {name}: scheduler must be a name, not {scheduler!r}")
    measured = (data["quality"], data["latency_ms"], data["speedup"], data["metrics"])
    return Point(schedule, *measured, steps, scheduler)


def check_has(name: str, data: dict[str, Any], keys: Iterable[str]) -> None:
    missing = [key for key in keys if key not in data]
    if missing:
        raise DatoError(f'front: {name}: "{missing[0]}" is missing')


def check_keys(name: str, data: dict[str, Any], keys: Iterable[str], optional: Iterable[str] = ()) -> None:
    check_has(name, data, [key for key in keys if key not in ("format", "version")])
    unknown = sorted(set(data) - {*keys, *optional})
    if unknown:
        raise DatoError(f'front: {name}: unknown key "{unknown[0]}"')
