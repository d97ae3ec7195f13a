"""Simulate schedules with an error model: predict the errors of their final latents, image by image.

A simulation runs the sampler on deviations from stock, all in projections. The deviation of a prediction is

- of a whole call: the network's reaction to the latent's deviation. `Sensitivity.reactions` says how it depends on the
  deviations here and at the whole call before;
- of every other call: the same weighted sum as in its forecast, of its sources' deviations and of their measured errors
  E (`dato.prediction.error_model`).

Early errors do more than this says: the composition of the image is decided then, and before the second whole call all
calls reuse one value. So what they do by themselves counts again (`FIRST_GAP`, `FIRST_HALF`).

A part of each reaction is unknown. It counts as an error of its own, in a random direction, which later calls carry
on as they carry on the known part. `Sensitivity.error` neglects reactions and adds a doubt of all forecasts instead,
which adds up call by call, as the beam search needs.

Measured on emoji-sd with DPM++ 2M, before early errors counted again: for 104 schedules of 4 to 25 whole calls, the
prediction and the PSNR of other prompts' images have a rank correlation of 0.97. For schedules of equally many whole
calls it is 0.65 to 0.96 with 14 and more of them. Below it is from -0.5 to 0.9, for 5 to 9 schedules each that differ
little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from dato.call import last_turns, places_computed
from dato.errors import DatoError
from dato.forecast_rule import RULES
from dato.prediction.error_model import Sensitivity
from dato.schedule import Schedule

# How often the errors before the second whole call, and those of the first half of all calls, count again. Measured:
# docs/search.md, "What simulations are worth".
FIRST_GAP, FIRST_HALF = 0.5, 1.0
REMEMBERED = 20_000  # schedules whose early errors are kept
SLOTS = 3  # past values of a place that a forecast can read
Beginning = tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]  # depths, orders and ratios of the first calls
_FLOOR = 1e-10  # smaller mean square errors count as this one


@dataclass(frozen=True)
class Predicted:
    """Predicted mean square errors of final latents, for B schedules and N images.

    Attributes:
        errors: (B, N) the errors as far as they are known.
        reactions: (B, N) what the unknown parts of the network's reactions add.
        early: (B, N) both again, by early errors alone, weighted by `FIRST_GAP` and `FIRST_HALF`.
    """

    errors: np.ndarray
    reactions: np.ndarray
    early: np.ndarray

    @property
    def decibels(self) -> np.ndarray:
        """(B,) the predicted quality: the mean over images of -10 lg of the error, higher is better."""
        return to_decibels(self.errors + self.reactions + self.early).mean(axis=1)


def to_decibels(errors: np.ndarray) -> np.ndarray:
    """Return -10 lg of mean square errors, of the same shape."""
    return -10 * np.log10(np.maximum(errors, _FLOOR))


class Simulation:
    """Simulates schedules of one number of calls.

    Args:
        model: The error model.
    """

    def __init__(self, model: Sensitivity) -> None:
        if model.latents is None or model.reactions is None:
            raise DatoError("simulation: the error model of an earlier dato does not say how the network reacts")
        self.model = model
        self._latents, self._reactions = model.latents.astype(np.float32), model.reactions.astype(np.float32)
        self._times = np.array(model.times)
        self._since = last_turns(model.times)
        self._offset = np.broadcast_to(np.asarray(model.offset, dtype=np.float32), model.predictions.shape[1])
        self._alone: dict[Beginning, np.ndarray] = {}  # what early errors do alone
        self._basis = _basis([model.predictions, *model.partial.values(), *model.pruned.values(), self._offset])

    @cached_property
    def _stale(self) -> dict[int, np.ndarray]:
        return {depth: (table @ self._basis.T).astype(np.float32) for depth, table in self.model.stale.items()}

    def _norms(self, coefficients: np.ndarray) -> np.ndarray:
        """Return the length of each image's block: (B, r) -> (B, N)."""
        vectors = coefficients @ self._basis
        blocks = vectors.reshape(len(vectors), self.model.images, vectors.shape[1] // self.model.images)
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
        return Predicted(*self._simulated(schedules, self._offset), self._early(schedules))

    def _early(self, schedules: Sequence[Schedule]) -> np.ndarray:
        """Return `Predicted.early`."""
        if len(self._alone) > REMEMBERED:
            self._alone.clear()
        total = 0.0
        for end_of, weight in ((_second_whole_call, FIRST_GAP), (_middle, FIRST_HALF)):
            begun = [_beginning(schedule, end_of(schedule)) for schedule in schedules]
            unknown = {key: s for key, s in zip(begun, schedules, strict=True) if key not in self._alone}
            if unknown:
                alone = [_begun_so(key, schedule) for key, schedule in unknown.items()]
                errors = np.add(*self._simulated(alone, 0 * self._offset))
                self._alone |= zip(unknown, errors, strict=True)
            total = total + weight * np.array([self._alone[key] for key in begun])
        return total

    def _simulated(self, schedules: Sequence[Schedule], offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (B, N) the known errors, and what the unknown parts of the reactions add.

        Args:
            schedules: B schedules.
            offset: As `Sensitivity.offset`.
        """
        state = _State(schedules, len(self.model), len(self._basis), self.model.images)
        for call in range(1, len(self.model)):
            self._react(state, call)
            for depth in np.unique(state.depths[:, call]).tolist():
                if depth < self.model.rungs:
                    self._forecast(state, call, depth)
            self._prune(state, schedules, call)
            state.remember(call, self._times)
        known, by_reactions = state.parts(state.summed(self._latents[-1]))
        errors = self._norms(known + self._basis @ offset) ** 2
        return errors, state.unknown(by_reactions)

    def _check(self, schedule: Schedule) -> None:
        self.model.check(schedule)
        if any(schedule.orders) and not RULES[schedule.forecast].can_be_planned:
            raise DatoError(f"simulation: a {schedule.forecast} forecast reads all of the past, which is not simulated")

    def _react(self, state: _State, call: int) -> None:
        """Let the network react in whole calls."""
        rows = np.flatnonzero(state.depths[:, call] == self.model.rungs)
        a, b, c, unknown = self._reactions[call]
        state.inputs[call] = state.summed(self._latents[call, :call])
        last = state.last_whole[rows]
        kept = (c ** (call - last))[:, None].astype(np.float32)
        before = state.inputs[last, rows]
        reaction = b * (state.inputs[call, rows] - before) + kept * state.deviations[last, rows]
        reaction += (1 - kept) * (a * before)
        known, by_reactions = state.parts(reaction)
        squares = self._norms(known) ** 2 + state.unknown(by_reactions, rows)
        state.deviations[call, rows] = reaction
        state.deviations[call, rows, state.length + call] = 1.0  # the unknown part, for now of length 1
        state.reactions[rows, call] = unknown**2 * squares
        state.last_whole[rows] = call

    def _forecast(self, state: _State, call: int, depth: int) -> None:
        """Forecast what calls of this depth read."""
        at_depth = state.depths[:, call] == depth
        recent = (state.sources[depth] >= self._since[call]).sum(axis=1)  # others are from before the timesteps turned
        filled = np.minimum(np.minimum(state.filled[depth], recent.clip(1)), state.orders[:, call] + 1)
        for values in np.unique(filled[at_depth]).tolist():
            rows = np.flatnonzero(at_depth & (filled == values))
            sources = state.sources[depth][rows, :values]
            weights = _lagrange(self._times[sources], self._times[call])
            for slot in range(values):
                source, weight = sources[:, slot], weights[:, slot, None].astype(np.float32)
                state.deviations[call, rows] += weight * state.deviations[source, rows]
                state.deviations[call, rows, : state.length] += weight * self._stale[depth][call, source]

    def _prune(self, state: _State, schedules: Sequence[Schedule], call: int) -> None:
        """Add the errors of pruned tokens."""
        for row, schedule in enumerate(schedules):
            if schedule.ratios[call] and schedule.depths[call]:
                error = self.model.pruned[schedule.depths[call], schedule.ratios[call]][call]
                state.deviations[call, row, : state.length] += self._basis @ error


class _State:
    """What is known of B schedules while they are simulated.

    A deviation has r + T numbers. The first r are the known part, as coefficients of the simulation's basis. The others
    say how much of each whole call's unknown reaction it has.

    Attributes:
        length: r.
        depths: (B, T) the depth of each call.
        orders: (B, T) the order of each call. An aligned forecast counts as the line.
        deviations: (T, B, r + T) the deviation of each call's prediction.
        inputs: (T, B, r + T) the deviation of what the network gets.
        reactions: (B, T, N) the mean square of the unknown part of each whole call's reaction.
        last_whole: (B,) the last whole call.
        sources: Depth -> (B, SLOTS) the calls that computed what it reads, the latest first.
        filled: Depth -> (B,) how many of them there are.
    """

    def __init__(self, schedules: Sequence[Schedule], calls: int, length: int, images: int) -> None:
        count, self.length = len(schedules), length
        self.depths = np.array([schedule.depths for schedule in schedules])
        self.orders = np.array([schedule.orders for schedule in schedules])
        self.deviations = np.zeros((calls, count, length + calls), np.float32)
        self.inputs = np.zeros_like(self.deviations)
        self.reactions = np.zeros((count, calls, images), np.float32)
        self.last_whole = np.zeros(count, dtype=np.int64)
        partial = sorted(set(self.depths.flatten().tolist()) - {schedules[0].rungs})
        self.sources = {depth: np.zeros((count, SLOTS), dtype=np.int64) for depth in partial}
        self.filled = {depth: np.ones(count, dtype=np.int64) for depth in partial}
        self._computing = {
            depth: np.array([depth - 1 in places_computed(other) for other in range(schedules[0].rungs + 1)])
            for depth in partial
        }

    def summed(self, weights: np.ndarray) -> np.ndarray:
        """Return (B, r + T) the sum of the first calls' deviations, with these weights (at most T)."""
        past = self.deviations[: len(weights)]
        return (weights @ past.reshape(len(weights), -1)).reshape(past.shape[1:])

    def parts(self, deviation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the known part (B, r) of a deviation, and its share (B, T) of each unknown reaction."""
        return deviation[:, : self.length], deviation[:, self.length :]

    def unknown(self, by_reactions: np.ndarray, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return (B, N) the mean square of the unknown part of deviations. Unknown reactions are independent."""
        return np.einsum("bt,btn->bn", by_reactions**2, self.reactions[rows])

    def remember(self, call: int, times: np.ndarray) -> None:
        """Take in what a call computed. A second value at the same timestep replaces the first."""
        for depth, sources in self.sources.items():
            rows = np.flatnonzero(self._computing[depth][self.depths[:, call]])
            pushed = rows[times[sources[rows, 0]] != times[call]]
            sources[pushed, 1:] = sources[pushed, :-1]
            self.filled[depth][pushed] = np.minimum(self.filled[depth][pushed] + 1, SLOTS)
            sources[rows, 0] = call


def _second_whole_call(schedule: Schedule) -> int:
    """Return the second whole call, or the number of calls if there is none."""
    calls = len(schedule)
    return next((call for call in range(1, calls) if schedule.depths[call] == schedule.rungs), calls)


def _middle(schedule: Schedule) -> int:
    return len(schedule) // 2


def _beginning(schedule: Schedule, end: int) -> Beginning:
    """Return depths, orders and ratios of the calls before `end`.

    Calls that find one value have order 0 here, so that fewer beginnings differ.
    """
    first = min(end, _second_whole_call(schedule))
    depths, orders = schedule.depths[:end], schedule.orders[:end]
    if not any(depths[1:first]):
        orders = (0,) * first + orders[first:]
    return depths, orders, schedule.ratios[:end]


def _begun_so(beginning: Beginning, schedule: Schedule) -> Schedule:
    """Return a schedule that begins so, and whose later calls are whole. All else is that of `schedule`."""
    left = len(schedule) - len(beginning[0])
    depths, orders, ratios = (
        part + (rest,) * left for part, rest in zip(beginning, (schedule.rungs, 0, 0.0), strict=True)
    )
    return replace(schedule, depths=depths, orders=orders, ratios=ratios)


def _basis(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Return orthogonal rows (r, k), of length 1, that span all vectors (..., k). A small basis saves time."""
    rows = np.concatenate([np.reshape(array, (-1, array.shape[-1])) for array in vectors])
    count, length = rows.shape
    basis = np.eye(length) if count >= length else np.linalg.qr(rows.T)[0].T
    return np.ascontiguousarray(basis, dtype=np.float32)


def _lagrange(times: np.ndarray, now: float) -> np.ndarray:
    """Return the weights (B, n) of the polynomial through n values at `times` (B, n), evaluated at `now`."""
    weights = np.ones(times.shape)
    for i in range(times.shape[1]):
        for j in range(times.shape[1]):
            if i != j:
                weights[:, i] *= (now - times[:, j]) / (times[:, i] - times[:, j])
    return weights
