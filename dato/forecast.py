"""Forecasting: how values that were computed at past calls are brought to the present one.

All but one of the rules here are weights: the forecast is a weighted sum of past values, and the weights depend only
on when those were computed, which the host knows beforehand. So a forecast costs one pass over the values and never
makes a GPU wait.

Sources: the polynomial is the definition of `Schedule.orders`; `chebyshev` is Spectrum's rule (Han et al., "Adaptive
Spectral Feature Forecasting for Diffusion Sampling Acceleration", CVPR 2026). `align` is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

FORECASTS = ("polynomial", "aligned", "chebyshev")


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


def align(values: Sequence[Tensor], skips: Sequence[Tensor]) -> Tensor:
    """Continue the line through two values as far as the skip connection beside them has gone along its own.

    value = v1 + k (v1 - v0) with k = <s1 - s0, s - s1> / |s1 - s0|^2 for each image.

    Args:
        values: v0, v1 of shape (B, C, h, w).
        skips: s0, s1 at the same calls and s now, (B, C', h', w').
    """
    v0, v1 = values
    s0, s1, s = (skip.float() for skip in skips)
    secant = s1 - s0
    k = (secant * (s - s1)).flatten(1).sum(1) / secant.square().flatten(1).sum(1).clamp(min=1e-12)
    return finite(torch.addcmul(v1, (v1 - v0), k.to(v1.dtype).view(-1, 1, 1, 1)))


def finite(value: Tensor) -> Tensor:
    # Of the dtypes that diffusion runs in, only float16 ends where a feature may go.
    return value.clamp_(-65504.0, 65504.0) if value.dtype == torch.float16 else value
