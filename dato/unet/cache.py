"""The cache: what was computed at past calls, kept as long as a later call will read it.

A *place* is a rung, for what arrives there from below, or `LAST`, for the prediction (in Spectrum's rule the last
feature, from which the UNet's head makes the prediction).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from dato.schedule import Schedule
from dato.unet.forecast import align, chebyshev, combine, polynomial

LAST = -1


class Computed(NamedTuple):
    """A value, when it was computed, and the skip connection of its rung at that call (where it is needed)."""

    call: int
    time: float
    value: Tensor
    skip: Tensor | None
    version: int | None  # the tensor's, when it was stored: the pipeline gets the prediction and may write into it


class Recalled(NamedTuple):
    """What the past has of a place, up to the one thing that only the running call can add.

    Attributes:
        values: The value itself alone; or the last ones, to be aligned.
        skips: The skip connection at the calls of `values`, where these are to be aligned.
        step: The line's step (see `dato.unet.forecast.align`).
    """

    values: tuple[Tensor, ...]
    skips: tuple[Tensor, ...] = ()
    step: float | Tensor = 0.0

    def arrive(self, skip: Tensor | None) -> Tensor:
        """The value for the present call, given its rung's skip connection now."""
        return align(self.values, [*self.skips, skip], self.step) if self.skips else self.values[0]


@dataclass(frozen=True)
class Present:
    """The call that is running.

    Attributes:
        call: Its index.
        time: Its timestep.
        order: Its forecasts' order.
        keep: How many values of each place later calls will need; None: the last one of every place.
    """

    call: int = 0
    time: float = 0.0
    order: int = 0
    keep: Mapping[int, int] | None = None


class Cache:
    """Past values by place, and their forecasts.

    Args:
        forecast: One of `dato.schedule.FORECASTS`, for orders above 0.
        calls: Calls of the generation.
    """

    def __init__(self, forecast: str = "polynomial", calls: int = 0) -> None:
        self.forecast, self.calls = forecast, calls
        self.last_feature = forecast == "chebyshev"
        self.present = Present()
        self._past: dict[int, list[Computed]] = {}

    def clear(self) -> None:
        """Forget everything: a new generation begins."""
        self._past.clear()

    def begin(self, present: Present) -> None:
        """A call begins."""
        self.present = present

    def end(self) -> None:
        """The call is over: free what no later call will read."""
        keep = self.present.keep
        if keep is None:
            return
        for place in list(self._past):
            if place in keep:
                del self._past[place][: -keep[place]]
            else:
                del self._past[place]

    def store(self, place: int, value: Tensor, skip: Tensor | None = None, *, copy: bool = False) -> None:
        """Keep what this call computed, if it will be needed; a value of the same timestep is replaced.

        Args:
            place: A rung, or `LAST`.
            value: What was computed.
            skip: The rung's skip connection, for aligned forecasts.
            copy: The memory of both will be written over.
        """
        now, keep = self.present, self.present.keep
        count = 1 if keep is None else keep.get(place, 0)
        if not count:
            return
        past = self._past.setdefault(place, [])
        if past and past[-1].time == now.time:
            past.pop()
        value = value.detach()
        if copy or (place == LAST and version_of(value) is None):
            value = value.clone()
        skip = skip.detach() if self.forecast == "aligned" and skip is not None else None
        if copy and skip is not None:
            skip = skip.clone()
        past.append(Computed(now.call, now.time, value, skip, version_of(value)))
        del past[:-count]

    def recall(self, place: int, skip: Tensor | None = None) -> Tensor:
        """The value of `place` for the present call: the last one, or a forecast.

        Args:
            place: A rung, or `LAST`.
            skip: The rung's skip connection now, for aligned forecasts.
        """
        return self.recalled(place).arrive(skip)

    def recalled(self, place: int) -> Recalled:
        """What is known of `place` before the present call runs."""
        now, past = self.present, self._past[place]
        past = past[-_needed(self.forecast, place, now.order) :]
        values = tuple(p.value for p in past)
        if len(past) == 1:
            return Recalled(values)
        if self.forecast == "chebyshev":
            return Recalled((combine(values, chebyshev([p.call for p in past], now.call, self.calls)),))
        if self.forecast == "aligned" and now.order == 1 and place != LAST:
            step = (now.time - past[-1].time) / (past[-1].time - past[-2].time)
            return Recalled(values, tuple(p.skip for p in past), step)
        return Recalled((combine(values, polynomial([p.time for p in past], now.time)),))

    def last(self) -> Tensor:
        """The prediction for a call of depth 0: the last one itself, or a forecast."""
        value = self.recall(LAST)
        return value.clone() if version_of(value) is None and not self.last_feature else value

    def bears(self, depth: int) -> bool:
        """Whether a call of `depth` (below full) finds here what it needs, and finds it as it was computed."""
        past = self._past.get(depth - 1)
        if not past:
            return False
        return depth > 0 or all(p.version == version_of(p.value) for p in past)


def version_of(value: Tensor) -> int | None:
    """How often a tensor was written into; None under `torch.inference_mode`, which does not count."""
    return None if value.is_inference() else value._version


def _needed(forecast: str, place: int, order: int) -> int:
    """How many of the last values a forecast reads at most."""
    if forecast == "chebyshev" and order:
        return 1_000_000  # all there are
    if forecast == "aligned" and order == 1 and place != LAST:
        return 3
    return order + 1


@lru_cache(maxsize=64)
def retention(schedule: Schedule, times: tuple[float, ...] | None) -> tuple[dict[int, int], ...]:
    """For each call of a schedule, how many values of each place its later calls will need.

    Args:
        schedule: What will run.
        times: Its calls' timesteps; None if they are not known.
    """
    full, calls = schedule.rungs, len(schedule)
    keep: list[dict[int, int]] = [{} for _ in range(calls)]
    for place in {depth - 1 for depth in schedule.depths if depth < full}:
        computes = [depth == full or (depth > 0 and place < depth - 1) for depth in schedule.depths]
        need = 0
        for call in range(calls - 1, 0, -1):
            depth, _, order = schedule.entries[call]
            if computes[call]:
                # A value of the same timestep as the one before replaces it: the older ones are still needed.
                before = next((c for c in range(call - 1, -1, -1) if computes[c]), call)
                if times is not None and times[before] != times[call]:
                    need = max(0, need - 1)
            elif depth - 1 == place:
                need = max(need, _needed(schedule.forecast, place, order))
            if need:
                keep[call - 1][place] = need
    return tuple(keep)
