"""The Fréchet distance between two sets of features, each taken for a Gaussian: pytorch-fid's function."""

from __future__ import annotations

import contextlib
import math
import os

import numpy as np
from pytorch_fid.fid_score import calculate_frechet_distance
from torch import Tensor

Moments = tuple[np.ndarray, np.ndarray]


def moments(features: Tensor) -> Moments:
    """Mean (F,) and covariance (F, F) of features (n, F), n at least 2."""
    values = features.double().numpy()
    return values.mean(axis=0), np.cov(values, rowvar=False)


def frechet_distance(features: Tensor, real: Moments) -> float:
    """The distance of features (n, F) from real ones; NaN where there are so few that it cannot be calculated."""
    if not features.isfinite().all():
        return math.nan
    try:
        # It prints what it does about singular matrices, and standard output is for results.
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            return float(calculate_frechet_distance(*moments(features), *real))
    except ValueError:  # an imaginary part that is no rounding error
        return math.nan
