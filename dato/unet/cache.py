"""The cache: values that past calls computed, kept as long as a later call will read them.

The places that it holds values of are described in `dato.call`.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dato.call import LAST, Call
from dato.forecast_rule import POLYNOMIAL, ForecastRule
from dato.unet.forecast import Moment, align, combine, forecast_weights


class Computed(NamedTuple):
    """A value that a call computed.

    Attributes:
        moment: When it was computed.
        value: The value.
        skip: The skip connection of its rung at that call; None if the rule does not read it.
        version: The tensor's version when it was stored, because the pipeline gets the prediction and may write into
            it; None if PyTorch does not count versions.
    """

    moment: Moment
    value: Tensor
    skip: Tensor | None
    version: int | None


class Recalled(NamedTuple):
    """What the past gives for a place, before the running call adds its skip connection.

    Attributes:
        values: One value, which is the result; or the last two or three, to be aligned.
        skips: The skip connections at the calls of `values`, if these are to be aligned; else empty.
        step: The line's step (see `dato.unet.forecast.align`).
    """

    values: tuple[Tensor, ...]
    skips: tuple[Tensor, ...] = ()
    step: float | Tensor = 0.0

    def arrive(self, skip: Tensor | None) -> Tensor:
        """Return the value for the present call; `skip` is its rung's skip connection now."""
        return align(self.values, [*self.skips, skip], self.step) if self.skips else self.values[0]


class Cache:
    """Past values by place, and their forecasts.

    Args:
        rule: The schedule's rule of forecasting.
        span: The number of calls of the generation.

    Attributes:
        call: The call that is running.
        time: Its timestep.
    """

    def __init__(self, rule: ForecastRule = POLYNOMIAL, span: int = 0) -> None:
        self.rule, self.span = rule, span
        self.call, self.time = Call(), 0.0
        self._past: dict[int, list[Computed]] = {}

    @property
    def last_feature(self) -> bool:
        """Whether `LAST` holds the last feature before the UNet's head instead of the prediction."""
        return self.rule.caches_last_feature

    @property
    def empty(self) -> bool:
        """Whether it holds nothing."""
        return not self._past

    def clear(self) -> None:
        """Forget everything, because a new generation begins."""
        self._past.clear()

    def begin(self, call: Call, time: float = 0.0) -> None:
        """Begin a call at a timestep."""
        self.call, self.time = call, time

    def end(self) -> None:
        """End the call: free what no later call will read."""
        keep = self.call.keep
        if keep is None:
            return
        for place in list(self._past):
            if place in keep:
                del self._past[place][: -keep[place]]
            else:
                del self._past[place]

    def store(self, place: int, value: Tensor, skip: Tensor | None = None, *, copy: bool = False) -> None:
        """Keep a value that this call computed, if a later call needs it. It replaces one of the same timestep.

        Args:
            place: A rung, or `LAST`.
            value: The value.
            skip: The rung's skip connection, which aligned forecasts read.
            copy: Whether to copy both, because their memory will be written over.
        """
        keep = self.call.keep
        count = 1 if keep is None else keep.get(place, 0)
        if not count:
            return
        past = self._past.setdefault(place, [])
        if past and past[-1].moment.time == self.time:
            past.pop()
        if past and past[-1].value.shape != value.shape:
            past.clear()  # other code changed the size within the UNet, and no forecast spans two sizes
        value = value.detach()
        if copy or (place == LAST and version_of(value) is None):
            value = value.clone()
        skip = skip.detach() if self.rule.uses_skips and skip is not None else None
        if copy and skip is not None:
            skip = skip.clone()
        past.append(Computed(Moment(self.call.index, self.time), value, skip, version_of(value)))
        del past[:-count]

    def recall(self, place: int, skip: Tensor | None = None) -> Tensor:
        """Return the value of `place` for the present call: the last one, or a forecast.

        Args:
            place: A rung, or `LAST`.
            skip: The rung's skip connection now, which aligned forecasts read.
        """
        return self.recalled(place).arrive(skip)

    def recalled(self, place: int) -> Recalled:
        """Return what is known of `place` before the present call runs."""
        past, rule = self._past[place][-self.call.values :], self.call.rule
        past = [computed for computed in past if computed.moment.call >= self.call.since] or past[-1:]
        values = tuple(computed.value for computed in past)
        if len(past) == 1:
            return Recalled(values)
        moments, now = [computed.moment for computed in past], Moment(self.call.index, self.time)
        if rule.uses_skips:
            step = (now.time - moments[-1].time) / (moments[-1].time - moments[-2].time)
            return Recalled(values, tuple(computed.skip for computed in past), step)
        return Recalled((combine(values, forecast_weights(rule, moments, now, self.span)),))

    def last(self) -> Tensor:
        """Return what a call of depth 0 makes its prediction of: the last value of `LAST`, or a forecast of it."""
        value = self.recall(LAST)
        return value.clone() if version_of(value) is None and not self.last_feature else value

    def can_serve(self, depth: int) -> bool:
        """Return whether a call of `depth` (below full) finds here what it reads, unchanged since it was stored."""
        past = self._past.get(depth - 1)
        if not past:
            return False
        return depth > 0 or all(computed.version == version_of(computed.value) for computed in past)


def version_of(value: Tensor) -> int | None:
    """Return how often a tensor was written into; None under `torch.inference_mode`, which does not count."""
    return None if value.is_inference() else value._version
