"""A point of a front: a schedule with its measured quality and latency. And which points dominate which."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dato.errors import DatoError
from dato.hub.paths import without_paths
from dato.metrics import label_of, text_of
from dato.pruning import Pruning
from dato.schedule import Schedule
from dato.utils.files import dumps, write_atomic

_KEYS = ("depths", "ratios", "orders", "quality", "latency_ms", "speedup", "metrics")
_OPTIONAL_KEYS = ("forecast", "steps", "scheduler")
SAME_LATENCY = 0.005  # Latencies that differ by less, as a share, count as equal: no timing here tells them apart


@dataclass(frozen=True)
class Point:
    """A schedule with its measurements.

    Attributes:
        schedule: The schedule.
        quality: The search's quality metric; higher is better.
        latency_ms: Milliseconds per image.
        speedup: Stock's latency divided by this one's.
        metrics: Further measures by name.
        steps: The number of sampler steps that the schedule is for. None: the front's.
        scheduler: The sampler, a name of `dato.samplers.SAMPLERS` or a class of diffusers. None: the front's.
        conditions: The conditions of its front. They are not compared when points are compared.
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
        """Return the arguments that the pipeline needs for this schedule: `pipe(prompt, **point.kwargs)`."""
        return {} if self.steps is None else {"num_inference_steps": self.steps}

    @property
    def summary(self) -> str:
        """Return one sentence that says what the schedule is for and what was measured. It has no paths."""
        known = without_paths(self.conditions)
        steps = self.steps or known.get("steps") or "an unknown number of"
        sampler = self.scheduler or known.get("scheduler_name") or known.get("scheduler") or "an unknown sampler"
        metric = known.get("quality", "quality")
        return (
            f"{known.get('model', 'An unknown model')}, {steps} steps of {sampler}: {self.speedup:.2f} times as fast "
            f"as the unchanged pipeline, {label_of(metric)} {text_of(metric, self.quality)}."
        )

    def export(self, path: str | Path, *, order: int | None = None) -> Schedule:
        """Write the schedule alone as JSON, for programs that read one schedule and no front. Write it atomically.

        The file says in `source` what `summary` says.

        Args:
            path: Where to write. A file that is there is replaced. The file's name becomes the schedule's.
            order: The highest order that the reader can forecast, by polynomials (see `Schedule.with_order_at_most`).
                The point's quality was measured with its own forecasts, so without them it is another. None: the
                schedule is written as it is.

        Returns:
            The schedule that was written.

        Raises:
            DatoError: if `order` is not 0, 1 or 2, or the file cannot be written.
        """
        schedule = self.schedule if order is None else self.schedule.with_order_at_most(order)
        source = self.summary
        if schedule != self.schedule:
            source += f" That was measured with other forecasts: here no order is above {order}, so quality differs."
        data = schedule.to_dict()
        head = {key: data.pop(key) for key in ("format", "version")}
        write_atomic(path, dumps({**head, "name": Path(path).stem, "source": source, **data}) + "\n")
        return schedule

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without `rungs` and `pruning`: the front has them once for all points."""
        schedule = self.schedule.to_dict()
        return {
            **{key: schedule[key] for key in ("depths", "ratios", "orders", "forecast") if key in schedule},
            **({} if self.steps is None else {"steps": self.steps}),
            **({} if self.scheduler is None else {"scheduler": self.scheduler}),
            "quality": self.quality,
            "latency_ms": self.latency_ms,
            "speedup": self.speedup,
            # A measure that is not a number says nothing, and JSON has no such numbers.
            "metrics": {name: value for name, value in self.metrics.items() if math.isfinite(value)},
        }


def non_dominated(points: Iterable[Point]) -> tuple[Point, ...]:
    """Return the points that no other point dominates in quality and latency, latency ascending.

    Of points that are equal in both, one is kept. A point whose quality is not finite is left out.
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.latency_ms, -p.quality)):
        if math.isfinite(point.quality) and (not front or point.quality > front[-1].quality):
            front.append(point)
    return tuple(front)


def competing(points: Iterable[Point], floor: float | None) -> tuple[Point, ...]:
    """Return the non-dominated points among those of at least the quality `floor` that are faster than stock.

    If no point reaches the floor, the floor is ignored. If no point is faster than stock, that is ignored, too.
    """
    points = list(points)
    good = [point for point in points if floor is None or point.quality >= floor] or points
    # Timing is noisy. A point that is slower than stock has no use, whatever its quality.
    return non_dominated([point for point in good if point.speedup > 1] or good)


def without_equals(front: Sequence[Point]) -> tuple[Point, ...]:
    """Return the points of a front, but of those that are about equally fast (`SAME_LATENCY`) only the best one.

    Args:
        front: As `non_dominated` returns it.
    """
    kept: list[Point] = []
    for point in reversed(front):
        if not kept or point.latency_ms * (1 + SAME_LATENCY) < kept[-1].latency_ms:
            kept.append(point)
    return tuple(reversed(kept))


def point_from_dict(name: str, data: Any, rungs: Any, pruning: Pruning) -> Point:
    """Return the point of a dictionary that `Point.to_dict` made.

    Args:
        name: The point's name in error messages.
        data: The dictionary.
        rungs: The number of rungs of the UNet.
        pruning: The settings of token pruning.

    Raises:
        DatoError: if anything in it is not valid.
    """
    if not isinstance(data, dict):
        raise DatoError(f"front: {name} must be an object")
    check_keys(name, data, _KEYS, _OPTIONAL_KEYS)
    forecast = data.get("forecast", "polynomial")
    try:
        schedule = Schedule(data["depths"], data["ratios"], data["orders"], rungs, pruning, forecast)
    except DatoError as error:
        raise DatoError(f"front: {name}: {error}") from None
    if not isinstance(data["metrics"], dict):
        raise DatoError(f"front: {name}: metrics must be an object")
    numbers = [*((key, data[key]) for key in ("quality", "latency_ms", "speedup")), *data["metrics"].items()]
    for key, value in numbers:
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
    """Raise DatoError, with the object's name, if one of the keys is missing."""
    missing = [key for key in keys if key not in data]
    if missing:
        raise DatoError(f'front: {name}: "{missing[0]}" is missing')


def check_keys(name: str, data: dict[str, Any], keys: Iterable[str], optional: Iterable[str] = ()) -> None:
    """Raise DatoError if one of the keys is missing, or there is a key that is neither among them nor optional."""
    check_has(name, data, [key for key in keys if key not in ("format", "version")])
    unknown = sorted(set(data) - {*keys, *optional})
    if unknown:
        raise DatoError(f'front: {name}: unknown key "{unknown[0]}"')
