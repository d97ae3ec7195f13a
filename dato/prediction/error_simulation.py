"""Simulate schedules with an error model: predict the errors of their final latents, image by image.

A simulation runs the sampler on deviations from stock, all in projections. The deviation of a prediction is

- of a whole call: the network's reaction to the latent's deviation (`Sensitivity.feedback`);
- of every other call: the same weighted sum as in its forecast, of its sources' deviations and of their measured errors
  E (`dato.prediction.error_model`).

The network's reaction to an error is known only on average. So each reaction counts as an error of its own, too: its
length times `UNKNOWN`, as if it had a random direction. `Sensitivity.error` neglects reactions and adds a doubt of all
forecasts instead, which adds up call by call, as the beam search needs. On emoji-sd with DPM++ 2M, simulations rank 41
schedules of 4 to 17 whole calls with a rank correlation of 0.98 to the PSNR of other prompts' images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dato.call import places_computed
from dato.errors import DatoError
from dato.forecast_rule import RULES
from dato.prediction.error_model import Sensitivity
from dato.prediction.sampler_response import effective_weights
from dato.schedule import Schedule

UNKNOWN = 0.7  # share of a reaction's length that the average does not explain
SLOTS = 3  # past values of a place that a forecast can read
_FLOOR = 1e-10  # smaller mean square errors count as this one


@dataclass(frozen=True)
class Predicted:
    """Predicted mean square errors of final latents, for B schedules and N images.

    Attributes:
        errors: (B, N) the errors as far as they are known.
        reactions: (B, N) what the unknown parts of the network's reactions add.
    """

    errors: np.ndarray
    reactions: np.ndarray

    @property
    def decibels(self) -> np.ndarray:
        """(B,) the predicted quality: the mean over images of -10 lg of the error, higher is better."""
        return to_decibels(self.errors + self.reactions).mean(axis=1)


def to_decibels(errors: np.ndarray) -> np.ndarray:
    """Return -10 lg of mean square errors, of the same shape."""
    return -10 * np.log10(np.maximum(errors, _FLOOR))


class Simulation:
    """Simulates schedules of one number of calls.

    Args:
        model: The error model.
    """

    def __init__(self, model: Sensitivity) -> None:
        self.model, calls = model, len(model)
        # Models of earlier versions do not say how the sampler responds, so in them the network does not react.
        latents = np.zeros((calls + 1, calls)) if model.latents is None else model.latents.copy()
        if model.latents is None:
            latents[-1] = model.weights
        self._latents = latents.astype(np.float32)
        self._reaction = model.feedback.astype(np.float32)
        self._weights = np.abs(effective_weights(latents, model.feedback)).astype(np.float32)
        self._times = np.array(model.times)

    @cached_property
    def _stale(self) -> dict[int, np.ndarray]:
        return {depth: np.ascontiguousarray(table, dtype=np.float32) for depth, table in self.model.stale.items()}

    def _norms(self, vectors: np.ndarray) -> np.ndarray:
        """Return the length of each image's block: (..., k) -> (..., N)."""
        images = self.model.images
        blocks = vectors.reshape(*vectors.shape[:-1], images, vectors.shape[-1] // images)
        return np.sqrt(np.einsum("...k,...k->...", blocks, blocks))

    def __call__(self, schedules: Sequence[Schedule]) -> Predicted:
        """Simulate schedules.

        Raises:
            DatoError: if one of them has another length, a depth or ratio that was not measured, or a forecast that
                reads all of the past.
        """
        schedules = [schedule.for_rungs(self.model.rungs) for schedule in schedules]
        for schedule in schedules:
            self._check(schedule)
        state = _State(schedules, len(self.model), self.model.predictions.shape[1], self.model.images)
        for call in range(1, len(self.model)):
            self._react(state, call)
            for depth in np.unique(state.depths[:, call]).tolist():
                if depth < self.model.rungs:
                    self._forecast(state, call, depth)
            self._prune(state, schedules, call)
            state.remember(call, self._times)
        final = np.tensordot(state.deviations, self._latents[-1], axes=(1, 0)) + np.asarray(self.model.offset)
        return Predicted(self._norms(final) ** 2, UNKNOWN**2 * state.reactions)

    def _check(self, schedule: Schedule) -> None:
        self.model.check(schedule)
        if any(schedule.orders) and not RULES[schedule.forecast].can_be_planned:
            raise DatoError(f"simulation: a {schedule.forecast} forecast reads all of the past, which is not simulated")

    def _react(self, state: _State, call: int) -> None:
        """Let the network react in whole calls."""
        rows = np.flatnonzero(state.depths[:, call] == self.model.rungs)
        deviation = np.tensordot(state.deviations[rows, :call], self._latents[call, :call], axes=(1, 0))
        reaction = self._reaction[call] * deviation
        state.deviations[rows, call] = reaction
        state.reactions[rows] += (self._weights[call] * self._norms(reaction)) ** 2

    def _forecast(self, state: _State, call: int, depth: int) -> None:
        """Forecast what calls of this depth read."""
        at_depth = state.depths[:, call] == depth
        filled = np.minimum(state.filled[depth], state.orders[:, call] + 1)
        for values in np.unique(filled[at_depth]).tolist():
            rows = np.flatnonzero(at_depth & (filled == values))
            sources = state.sources[depth][rows, :values]
            weights = _lagrange(self._times[sources], self._times[call])
            for slot in range(values):
                source, weight = sources[:, slot], weights[:, slot, None].astype(np.float32)
                past = self._stale[depth][call, source] + state.deviations[rows, source]
                state.deviations[rows, call] += weight * past

    def _prune(self, state: _State, schedules: Sequence[Schedule], call: int) -> None:
        """Add the errors of pruned tokens."""
        for row, schedule in enumerate(schedules):
            if schedule.ratios[call] and schedule.depths[call]:
                error = self.model.pruned[schedule.depths[call], schedule.ratios[call]][call]
                state.deviations[row, call] += error


class _State:
    """What is known of B schedules while they are simulated.

    Attributes:
        depths: (B, T) the depth of each call.
        orders: (B, T) the order of each call. An aligned forecast counts as the line.
        deviations: (B, T, k) the deviation of each call's prediction.
        reactions: (B, N) the sum of squares of the final latent's change by all reactions.
        sources: Depth -> (B, SLOTS) the calls that computed what it reads, the latest first.
        filled: Depth -> (B,) how many of them there are.
    """

    def __init__(self, schedules: Sequence[Schedule], calls: int, length: int, images: int) -> None:
        count = len(schedules)
        self.depths = np.array([schedule.depths for schedule in schedules])
        self.orders = np.array([schedule.orders for schedule in schedules])
        self.deviations = np.zeros((count, calls, length), np.float32)
        self.reactions = np.zeros((count, images), np.float32)
        partial = sorted(set(self.depths.flatten().tolist()) - {schedules[0].rungs})
        self.sources = {depth: np.zeros((count, SLOTS), dtype=np.int64) for depth in partial}
        self.filled = {depth: np.ones(count, dtype=np.int64) for depth in partial}
        self._computing = {
            depth: np.array([depth - 1 in places_computed(other) for other in range(schedules[0].rungs + 1)])
            for depth in partial
        }

    def remember(self, call: int, times: np.ndarray) -> None:
        """Take in what a call computed. A second value at the same timestep replaces the first."""
        for depth, sources in self.sources.items():
            rows = np.flatnonzero(self._computing[depth][self.depths[:, call]])
            pushed = rows[times[sources[rows, 0]] != times[call]]
            sources[pushed, 1:] = sources[pushed, :-1]
            self.filled[depth][pushed] = np.minimum(self.filled[depth][pushed] + 1, SLOTS)
            sources[rows, 0] = call


def _lagrange(times: np.ndarray, now: float) -> np.ndarray:
    """Return the weights (B, n) of the polynomial through n values at `times` (B, n), evaluated at `now`."""
    weights = np.ones(times.shape)
    for i in range(times.shape[1]):
        for j in range(times.shape[1]):
            if i != j:
                weights[:, i] *= (now - times[:, j]) / (times[:, i] - times[:, j])
    return weights
