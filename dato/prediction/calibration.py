"""Calibrate: predict the quality of schedules from the errors that an error model predicts.

The fit is a ridge regression of quality on the logarithms of predicted errors, in decibels, and on the number of
whole calls. It is fitted to schedules that a search has judged. So it corrects what the error model neglects: large
errors are not linear, and a metric depends more on some errors than on others. What the regression leaves is averaged
over the judged schedules whose predicted errors are alike, and added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from dato.errors import DatoError
from dato.prediction.error_model import Sensitivity
from dato.prediction.error_simulation import Simulation, to_decibels
from dato.schedule import Schedule

FEWEST = 10  # judged schedules that a fit needs
RIDGE = 1.0
NEAR = 0.5  # standard deviations of the predicted errors within which schedules count as alike
_FLOOR = 1e-6  # smaller mean square errors of latents count as this one, in models of earlier versions


class Calibration:
    """Predicts the quality of schedules.

    Args:
        models: One error model for each number of calls, `against` the same reference.
        judged: Schedules and their quality, higher is better. Schedules that no model covers are left out, and so are
            qualities that are not finite. With fewer than `FEWEST`, the prediction is the error in decibels, which
            only ranks schedules.

    Attributes:
        fitted: Whether predictions are in the unit of the judged qualities.
        deviation: The root mean square difference between judged and predicted qualities; None without a fit.

    Raises:
        DatoError: if two models have the same number of calls, or there is no model.
    """

    def __init__(self, models: Iterable[Sensitivity], judged: Sequence[tuple[Schedule, float]] = ()) -> None:
        models = list(models)
        self._features = {len(model): _features_of(model) for model in models}
        if not models or len(self._features) < len(models):
            raise DatoError("calibration: it takes one sensitivity model for each number of calls, and at least one")
        self._smooth = all(model.latents is not None for model in models)  # earlier versions did not
        judged = [(schedule, quality) for schedule, quality in judged if math.isfinite(quality)]
        features = self.features([schedule for schedule, _ in judged])
        covered = ~np.isnan(features).any(axis=1)
        self.fitted, self.deviation = covered.sum() >= FEWEST, None
        if self.fitted:
            self._fit(features[covered], np.array([quality for _, quality in judged])[covered])

    def _fit(self, x: np.ndarray, y: np.ndarray) -> None:
        self._center, self._scale, self._mean = x.mean(axis=0), x.std(axis=0) + 1e-9, y.mean()
        z = (x - self._center) / self._scale
        self._slopes = np.linalg.solve(z.T @ z + RIDGE * np.eye(z.shape[1]), z.T @ (y - self._mean))
        self._known, self._left = z, y - (z @ self._slopes + self._mean)
        self.deviation = float(np.sqrt(np.mean(self._left**2)))

    def __call__(self, schedule: Schedule) -> float:
        """Return the predicted quality. Raise DatoError if no model covers the schedule."""
        if len(schedule) not in self._features:
            raise DatoError(f"calibration: there is no sensitivity model of {len(schedule)} calls")
        return float(self._predict(self._features[len(schedule)]([schedule]))[0])

    def predict(self, schedules: Sequence[Schedule]) -> np.ndarray:
        """Return the predicted quality of each schedule, (B,); -inf if no model covers it."""
        quality = self._predict(self.features(schedules))
        return np.where(np.isnan(quality), -math.inf, quality)

    def _predict(self, features: np.ndarray) -> np.ndarray:
        if not self.fitted:
            return features[:, 0]
        z = (features - self._center) / self._scale
        if not self._smooth:
            return z @ self._slopes + self._mean
        near = np.exp(-0.5 * np.square((z[:, None] - self._known) / NEAR).sum(axis=2))
        return z @ self._slopes + self._mean + near @ self._left / (near.sum(axis=1) + 1)

    def features(self, schedules: Sequence[Schedule]) -> np.ndarray:
        """Return (B, F) what is known of each schedule, in decibels, higher is better; NaN if not covered."""
        rows: list[np.ndarray | None] = [None] * len(schedules)
        for calls, features_of in self._features.items():
            chosen = [row for row, schedule in enumerate(schedules) if len(schedule) == calls]
            for row, values in zip(chosen, _each(features_of, [schedules[row] for row in chosen]), strict=True):
                rows[row] = values
        width = next((len(values) for values in rows if values is not None), 1)
        return np.array([np.full(width, np.nan) if values is None else values for values in rows]).reshape(-1, width)


Features = Callable[[Sequence[Schedule]], np.ndarray]


def _each(features_of: Features, schedules: Sequence[Schedule]) -> list[np.ndarray | None]:
    """Return the features of each schedule, None if the model does not cover it."""
    try:
        return list(features_of(schedules)) if schedules else []
    except DatoError:
        if len(schedules) == 1:
            return [None]
        return [_each(features_of, [schedule])[0] for schedule in schedules]


def _features_of(model: Sensitivity) -> Features:
    """Return the function that computes features with a model."""
    if model.latents is None:
        return lambda schedules: np.array([_first_order_features(model, schedule) for schedule in schedules])
    simulation = Simulation(model)

    def features(schedules: Sequence[Schedule]) -> np.ndarray:
        predicted = simulation(schedules)
        known, reactions = (to_decibels(errors).mean(axis=1) for errors in (predicted.errors, predicted.reactions))
        whole = [schedule.depths.count(schedule.rungs) for schedule in schedules]
        return np.stack([predicted.decibels, known, reactions, 20 * np.log10(whole)], axis=1)

    return features


def _first_order_features(model: Sensitivity, schedule: Schedule) -> np.ndarray:
    """Return the errors of the whole generation, of its thirds, and of all lengths, by a model of an earlier version.

    A search that an earlier version has begun goes on with them.
    """
    totals, lengths = model.totals(schedule)
    parts = np.array_split(model.weights[:, None] * totals, 3)
    errors = [
        model.error(schedule),
        *(np.square(part.sum(axis=0)).sum() for part in parts),
        (np.abs(model.weights) @ lengths) ** 2,
    ]
    return -10 * np.log10(np.maximum(errors, _FLOOR))
