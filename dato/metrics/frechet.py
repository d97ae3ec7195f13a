"""The Fréchet distance between two sets of features, each taken as a Gaussian: pytorch-fid's function."""

from __future__ import annotations

import contextlib
import math
import os

import numpy as np
from pytorch_fid.fid_score import calculate_frechet_distance
from torch import Tensor

Moments = tuple[np.ndarray, np.ndarray]


def moments(features: Tensor) -> Moments:
    """Return mean (F,) and covariance (F, F) of features (n, F), n at least 2."""
    values = features.double().numpy()
    return values.mean(axis=0), np.cov(values, rowvar=False)


def frechet_distance(features: Tensor, real: Moments) -> float:
    """Return the distance of features (n, F) from real ones, or NaN if there are too few to calculate it."""
    if not features.isfinite().all():
        return math.nan
    try:
        # pytorch-fid prints what it does about singular matrices. Standard output is for results only.
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            return float(calculate_frechet_distance(*moments(features), *real))
    except ValueError:  # an imaginary part that is larger than a rounding error
        return math.nan
