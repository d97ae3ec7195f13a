"""Forecasting: how values that were computed at past calls are brought to the present one.

By every rule except the aligned one, a forecast is a weighted sum of past values. The weights depend only on when the
values were computed, which the host knows before the call. So a forecast costs one pass over the values and never makes
a GPU wait.

Sources: the polynomial is the definition of `Schedule.orders`; `chebyshev` is Spectrum's rule (Han et al., "Adaptive
Spectral Feature Forecasting for Diffusion Sampling Acceleration", CVPR 2026); `align` is dato's own. What each rule
reads of the past is in `dato.forecast_rule`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dato.forecast_rule import ForecastRule
from dato.utils.half_precision import finite

_TINY = 1e-12  # keeps a division finite where a skip has not moved; the value then does not move either


class Moment(NamedTuple):
    """When a value was computed: the call's index and its timestep."""

    call: int
    time: float


def forecast_weights(rule: ForecastRule, past: Sequence[Moment], now: Moment, span: int) -> list[float]:
    """Return the weights of past values in a forecast.

    Args:
        rule: The rule that applies. For the aligned rule these are the line's weights, which it is close to.
        past: When the values were computed, ascending, at different timesteps.
        now: The present call.
        span: The number of calls of the generation.
    """
    if rule.uses_calls:
        return chebyshev([moment.call for moment in past], now.call, span)
    return polynomial([moment.time for moment in past], now.time)


def polynomial(times: Sequence[float], now: float) -> list[float]:
    """Return the weights of the polynomial of degree n - 1 through n values, evaluated at `now`.

    Args:
        times: (n,) when the values were computed, all different.
        now: The present time.
    """
    result = []
    for i, time in enumerate(times):
        weight = 1.0
        for j, other in enumerate(times):
            if j != i:
                weight *= (now - other) / (time - other)
        result.append(weight)
    return result


def chebyshev(
    calls: Sequence[int], now: int, span: int, *, degree: int = 4, ridge: float = 0.1, mix: float = 0.5
) -> list[float]:
    """Return the weights of Spectrum's rule: Chebyshev ridge regression over all past values, mixed with the line.

    Args:
        calls: (n,) the calls at which the values were computed, n >= 1.
        now: The present call.
        span: The number of calls of the generation; 0 to `span` is mapped to -1 to 1 (Spectrum fixes it at 50).
        degree: M, the degree of the Chebyshev polynomials.
        ridge: lambda, the weight of the ridge penalty.
        mix: w, the share of the regression; the rest is the line through the last two values.
    """

    def design(at: Sequence[int]) -> np.ndarray:
        return np.polynomial.chebyshev.chebvander(2 * np.asarray(at, dtype=float) / span - 1, degree)

    past = design(calls)
    fitted = design([now])[0] @ np.linalg.solve(past.T @ past + ridge * np.eye(degree + 1), past.T)
    mixed = mix * fitted
    recent = polynomial(calls[-2:], now)
    mixed[-len(recent) :] += (1 - mix) * np.array(recent)
    return mixed.tolist()


def combine(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted sum of values of one shape, summed in float32 and returned in their dtype."""
    if len(values) == 2 and abs(weights[0] + weights[1] - 1) < 1e-9:
        # One kernel. It is exact if the forecast is for the time of the last value, and sums half precision in float32.
        return finite(torch.lerp(values[0], values[1], weights[1]))
    total = values[-1].float() * weights[-1]
    for value, weight in zip(values[:-1], weights[:-1], strict=True):
        total.add_(value, alpha=weight)
    return finite(total.to(values[-1].dtype))


def align(values: Sequence[Tensor], skips: Sequence[Tensor], step: float, *, ridge: float = 0.1) -> Tensor:
    """Forecast a value from how the skip connection of its rung has changed.

    The present call computes the skip s anyway. The change of s since its last known value is written as a combination
    of its last one or two secants (differences of consecutive values). The value changes by the same combination of
    its own secants:

        c = argmin |s - s_n - sum_j c_j (s_j+1 - s_j)|^2 + lambda |c - p|^2
        value = v_n + sum_j c_j (v_j+1 - v_j)

    Here p is the line's step (k = `step` along the last secant, 0 along the one before), and lambda is `ridge` times
    the mean square length of the skip's secants. Each image has its own c, and so has each half of a guidance batch.
    All of this stays on the device.

    Args:
        values: The last n + 1 values, 2 or 3 of them, each (B, C, h, w).
        skips: The skip connection at the same calls, and now, each (B, C', h', w').
        step: (t - t_n) / (t_n - t_n-1).
        ridge: The weight of the line.

    Returns:
        (B, C, h, w), the forecast in the values' dtype.
    """
    *past, now = (skip.float().flatten(1) for skip in skips)
    secants = [b - a for a, b in pairwise(past)]
    change = now - past[-1]

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.vecdot(a, b)

    if len(secants) == 1:
        square = dot(secants[0], secants[0])
        steps = [(dot(secants[0], change) + ridge * square * step) / ((1 + ridge) * square).clamp(min=_TINY)]
    else:
        before, last = secants
        a, b, both = dot(before, before), dot(last, last), dot(before, last)
        penalty = ridge * (a + b) / 2
        a, b = a + penalty, b + penalty
        x, y = dot(before, change), dot(last, change) + penalty * step
        determinant = (a * b - both * both).clamp(min=_TINY)
        steps = [(b * x - both * y) / determinant, (a * y - both * x) / determinant]
    total = values[-1].float()
    for c, earlier, later in zip(steps, values, values[1:], strict=False):
        total = torch.addcmul(total, c.view(-1, 1, 1, 1), later.float() - earlier.float())
    return finite(total.to(values[-1].dtype))
