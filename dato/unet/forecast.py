"""Forecasting: how values that were computed at past calls are brought to the present one.

All but one of the rules here are weights: the forecast is a weighted sum of past values, and the weights depend only
on when those were computed, which the host knows beforehand. So a forecast costs one pass over the values and never
makes a GPU wait.

Sources: the polynomial is the definition of `Schedule.orders`; `chebyshev` is Spectrum's rule (Han et al., "Adaptive
Spectral Feature Forecasting for Diffusion Sampling Acceleration", CVPR 2026). `align` is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from dato.utils.half_precision import finite

_TINY = 1e-12  # where a skip has not moved at all, neither does the value


def polynomial(times: Sequence[float], now: float) -> list[float]:
    """Weights of the polynomial through values at `times` (n, all different), evaluated at `now`: degree n - 1."""
    weights = []
    for i, own in enumerate(times):
        weight = 1.0
        for j, other in enumerate(times):
            if j != i:
                weight *= (now - other) / (own - other)
        weights.append(weight)
    return weights


def chebyshev(
    calls: Sequence[int], now: int, span: int, *, degree: int = 4, ridge: float = 0.1, mix: float = 0.5
) -> list[float]:
    """Weights of Spectrum's rule: Chebyshev ridge regression over all past values, mixed with the line.

    Args:
        calls: (n,) the calls at which the values were computed, n >= 1.
        now: The present call.
        span: Calls of the generation; 0 to `span` is mapped to -1 to 1 (Spectrum fixes it at 50).
        degree: M, of the Chebyshev polynomials.
        ridge: lambda.
        mix: Share w of the regression; the rest is the line through the last two values.
    """

    def design(at: Sequence[int]) -> np.ndarray:
        return np.polynomial.chebyshev.chebvander(2 * np.asarray(at, dtype=float) / span - 1, degree)

    past = design(calls)
    fitted = design([now])[0] @ np.linalg.solve(past.T @ past + ridge * np.eye(degree + 1), past.T)
    weights = mix * fitted
    recent = polynomial(calls[-2:], now)
    weights[-len(recent) :] += (1 - mix) * np.array(recent)
    return weights.tolist()


def combine(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted sum of values of one shape, summed in float32 and given back in their dtype."""
    if len(values) == 2 and abs(weights[0] + weights[1] - 1) < 1e-9:
        # One kernel, exact where the forecast is for the time of the last value; half precision is summed in float32.
        return finite(torch.lerp(values[0], values[1], weights[1]))
    total = values[-1].float() * weights[-1]
    for value, weight in zip(values[:-1], weights[:-1], strict=True):
        total.add_(value, alpha=weight)
    return finite(total.to(values[-1].dtype))


def align(values: Sequence[Tensor], skips: Sequence[Tensor], step: float, *, ridge: float = 0.1) -> Tensor:
    """Continue a value's own past as its rung's skip connection has continued its own.

    The skip s is computed at the present call anyway. Its way from its last known value is written as a combination
    of its last one or two secants, and the value goes the same combination of its own secants:

        c = argmin |s - s_n - sum_j c_j (s_j+1 - s_j)|^2 + lambda |c - p|^2
        value = v_n + sum_j c_j (v_j+1 - v_j)

    where p is the line's step (k = `step` along the last secant, 0 along the one before), and lambda is `ridge` times
    the mean square length of the skip's secants; for each image by itself, guidance's halves included. It stays on the
    device.

    Args:
        values: The last n + 1 values, 2 or 3 of them, each (B, C, h, w).
        skips: The skip connection at the same calls, and now, each (B, C', h', w').
        step: (t - t_n) / (t_n - t_n-1).
        ridge: Weight of the line.
    """
    *past, now = (skip.float().flatten(1) for skip in skips)
    secants = [b - a for a, b in pairwise(past)]
    way = now - past[-1]

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.vecdot(a, b)

    if len(secants) == 1:
        square = dot(secants[0], secants[0])
        steps = [(dot(secants[0], way) + ridge * square * step) / ((1 + ridge) * square).clamp(min=_TINY)]
    else:
        before, last = secants
        a, b, both = dot(before, before), dot(last, last), dot(before, last)
        penalty = ridge * (a + b) / 2
        a, b = a + penalty, b + penalty
        x, y = dot(before, way), dot(last, way) + penalty * step
        determinant = (a * b - both * both).clamp(min=_TINY)
        steps = [(b * x - both * y) / determinant, (a * y - both * x) / determinant]
    total = values[-1].float()
    for c, earlier, later in zip(steps, values, values[1:], strict=False):
        total = torch.addcmul(total, c.view(-1, 1, 1, 1), later.float() - earlier.float())
    return finite(total.to(values[-1].dtype))
