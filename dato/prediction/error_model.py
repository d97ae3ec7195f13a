"""The error model (sensitivity): what is measured, and a first-order prediction of the final latent's error.

`dato.prediction.error_simulation` predicts more exactly from the same measurements. The planner's beam search needs the
prediction of this module, which adds up call by call.

One measurement along the stock trajectory gives E(t, d, s): the error of the (guided) prediction of call t if it runs
at depth d on what call s computed. It is measured for a few ages t - s. At depth 0 it is the difference of two stock
predictions and costs nothing. Errors are kept as vectors, by random projections, because the errors of neighbouring
calls have similar directions and add up. The rest follows to first order:

- A forecast is a weighted sum of past values, so its error is the same sum of E. Orders 1 and 2 need no measurements
  of their own. An aligned forecast is treated as the line.
- What a partial call computes has an error itself. So the total error of a call is its E plus the total errors of its
  sources, weighted as in the forecast.
- The error of the final latent is the weighted sum of all total errors. The weights include the response of the
  sampler and of the network (`dato.prediction.sampler_response`).

Vectors may cancel, in a forecast and in the sum, and a search finds schedules in which they seem to cancel. But they
are known only to within some percent. So `DOUBT` times the sum of all their lengths counts as an error, too. Its square
is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from diffusers import SchedulerMixin

from dato.call import Call
from dato.errors import DatoError
from dato.prediction.sampler_response import effective_weights, sampler_response
from dato.pruning import Pruning
from dato.schedule import Schedule
from dato.unet.forecast import Moment, forecast_weights

DOUBT = 0.1  # the best of 0.05, 0.1, 0.2 and 0.4 for plans of all budgets (emoji-sd, DPM++ 2M)


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What was measured, for T calls and A ages.

    Vectors are projections of length k: one block for each measured image, side by side.

    Attributes:
        rungs: The number of rungs of the UNet.
        times: (T,) timesteps.
        weights: (T,) the final latent's error for an error of 1 in one call's prediction.
        feedback: (T,) the change of a prediction for a change of 1 in the latent that the network gets.
        final: (k,) stock's final latent, divided as the predictions are.
        ages: (A,) the ages at which partial calls were measured, ascending. If call t has no call so far back, it was
            measured at age t instead.
        predictions: (T, k) stock's guided predictions, divided by the square root of their number of values.
        partial: Depth -> (T, A, k) the errors E of partial calls, divided likewise.
        pruned: (depth, ratio) -> (T, k) the errors of calls that prune and whose cache is fresh, divided likewise.
        pruning: The settings of token pruning that belong to the ratios.
        unet_calls: What measuring cost in time, in UNet calls of one image.
        offset: (k,) the difference between stock's final latent in this number of calls and the one that schedules
            are judged by, if that has another number of calls (`against`); else 0.
        images: The number of images that were measured, which is the number of blocks in each vector.
        latents: (T + 1, T) the sampler's response (`dato.prediction.sampler_response.Response.of_inputs`); None for a
            model of an earlier dato, which did not keep it.
        reactions: (T, 4) how the prediction of a whole call deviates; None as `latents`. The numbers are a, b, c and u.
            The network's latent deviates by x, and by x' at the whole call before, d calls earlier, where the
            prediction deviates by p'. Then the prediction deviates by b (x - x') + c^d p' + (1 - c^d) a x'. So it
            follows changes of x at once, and otherwise tends towards a x. u is the share of its length that this does
            not explain.
    """

    rungs: int
    times: tuple[float, ...]
    weights: np.ndarray
    feedback: np.ndarray
    final: np.ndarray
    ages: tuple[int, ...]
    predictions: np.ndarray
    partial: dict[int, np.ndarray]
    pruned: dict[tuple[int, float], np.ndarray] = field(default_factory=dict)
    pruning: Pruning = Pruning()
    unet_calls: float = 0.0
    offset: np.ndarray | float = 0.0
    images: int = 1
    latents: np.ndarray | None = None
    reactions: np.ndarray | None = None

    def __len__(self) -> int:
        """The number of calls."""
        return len(self.times)

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths that were measured, with 0 and the whole UNet."""
        return (0, *sorted(self.partial), self.rungs)

    @cached_property
    def stale(self) -> dict[int, np.ndarray]:
        """Depth -> (T, T, k): E(t, d, s) at [t, s] for s < t, interpolated between the ages that were measured."""
        calls, p = len(self), self.predictions
        differences = p[None, :] - p[:, None]
        tables = {0: differences}
        for depth, errors in self.partial.items():
            table = np.zeros((calls, calls, p.shape[1]), dtype=np.float32)
            for t in range(1, calls):
                table[t, :t] = _interpolated(self.ages, errors[t], np.linalg.norm(differences[t, :t], axis=1))
            tables[depth] = table
        return tables

    @cached_property
    def sizes(self) -> dict[int, np.ndarray]:
        """Depth -> (T, T): the lengths of the vectors in `stale`."""
        return {depth: np.linalg.norm(table, axis=2) for depth, table in self.stale.items()}

    def totals(self, schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
        """Return the total errors of the calls' predictions.

        Returns:
            (T, k) the total error of each call's prediction, as a projection; (T,) the sum of the lengths of all
            vectors in that error.

        Raises:
            DatoError: if the schedule has another length, or a depth or ratio that was not measured.
        """
        schedule = schedule.for_rungs(self.rungs)
        self.check(schedule)
        totals, lengths = np.zeros((len(self), self.predictions.shape[1])), np.zeros(len(self))
        for call in schedule.calls(self.times):
            for source, weight in self._source_weights(call):
                totals[call.index] += weight * (self.stale[call.depth][call.index, source] + totals[source])
                lengths[call.index] += abs(weight) * (self.sizes[call.depth][call.index, source] + lengths[source])
            if call.ratio and call.depth:
                totals[call.index] += self.pruned[call.depth, call.ratio][call.index]
        return totals, lengths

    def check(self, schedule: Schedule) -> None:
        """Raise DatoError if the model does not cover a schedule."""
        if len(schedule) != len(self):
            raise DatoError(f"sensitivity: it is for {len(self)} calls, and the schedule has {len(schedule)}")
        if any(schedule.ratios) and schedule.pruning != self.pruning:
            raise DatoError("sensitivity: it was measured with other settings of pruning than the schedule's")
        for depth, ratio in dict.fromkeys(zip(schedule.depths, schedule.ratios, strict=True)):
            if depth not in self.depths:
                raise DatoError(f"sensitivity: depth {depth} was not measured; known are {self.depths}")
            if ratio and depth and (depth, ratio) not in self.pruned:
                raise DatoError(f"sensitivity: ratio {ratio:g} at depth {depth} was not measured")

    def _source_weights(self, call: Call) -> list[tuple[int, float]]:
        """Return the calls that a call reads, each with its weight in the forecast."""
        # An aligned forecast reads three values, and the line reads the last two of them.
        sources = call.sources if call.rule.uses_calls else call.sources[-call.order - 1 :]
        if len(sources) < 2:
            return [(source, 1.0) for source in sources]
        *past, now = (Moment(index, self.times[index]) for index in (*sources, call.index))
        return list(zip(sources, forecast_weights(call.rule, past, now, len(self)), strict=True))

    def error(self, schedule: Schedule) -> float:
        """Return the predicted mean square error of the final latent against stock's.

        Raises:
            DatoError: as `totals`.
        """
        totals, lengths = self.totals(schedule)
        sum_of_errors = self.offset + self.weights @ totals
        return float(np.square(sum_of_errors).sum() + (DOUBT * np.abs(self.weights) @ lengths) ** 2) / self.images

    def against(self, reference: Sensitivity) -> Sensitivity:
        """Return the model of schedules that are judged by `reference`'s stock, with the same prompts and noise."""
        return replace(self, offset=self.final - reference.final)

    def for_steps(self, scheduler: SchedulerMixin, steps: int, final: np.ndarray) -> Sensitivity:
        """Return the model of another number of steps, interpolated from this one at the timesteps in between.

        Samplers of one differential equation take nearly the same trajectory in any number of steps. The sampler's
        response differs, and is computed anew.

        Args:
            scheduler: The sampler.
            steps: The number of steps, preferably fewer, so that the measured ages cover the new ones.
            final: (k,) stock's final latent in `steps` steps (`dato.prediction.error_measure.final_latent`).
        """
        response = sampler_response(scheduler, steps)
        calls = len(response.times)
        # (calls, T): each new call is a weighted mean of two old ones. Timesteps fall, and PLMS has one of them twice.
        old = np.array(self.times) - 1e-6 * np.arange(len(self))
        mix = np.stack([np.interp(-np.array(response.times), -old, row) for row in np.eye(len(self))], axis=1)
        ages = tuple(range(1, max(2, calls)))
        sources = np.maximum(np.arange(calls)[:, None] - np.array(ages), 0)
        partial = {}
        for depth in self.partial:
            table = np.einsum("at,tsk,bs->abk", mix, self.stale[depth], mix, optimize=True)
            partial[depth] = table[np.arange(calls)[:, None], sources].astype(np.float32)
        feedback = mix @ self.feedback
        return replace(
            self,
            times=response.times,
            weights=effective_weights(response.latents, feedback * response.scales),
            feedback=feedback,
            final=final,
            latents=None if self.latents is None else response.of_inputs,
            reactions=None if self.reactions is None else mix @ self.reactions,
            ages=ages,
            predictions=(mix @ self.predictions).astype(np.float32),
            partial=partial,
            pruned={kind: mix @ errors for kind, errors in self.pruned.items()},
            unet_calls=0.0,
        )


def _interpolated(ages: Sequence[int], errors: np.ndarray, differences: np.ndarray) -> np.ndarray:
    """Return the errors E of one call t at each source s < t, (t, k).

    Args:
        ages: (A,) the ages that were measured.
        errors: (A, k) the errors at these ages; an age above t was measured at age t.
        differences: (t,) the lengths of depth 0's errors.
    """
    t = len(differences)
    ages, first = np.unique(np.minimum(ages, t), return_index=True)
    values = np.concatenate([np.zeros((1, errors.shape[1])), errors[first]])  # at age 0 there is no error
    ages = np.concatenate([[0], ages])
    wanted = t - np.arange(t)
    right = np.minimum(np.searchsorted(ages, wanted), len(ages) - 1)
    share = np.minimum(1, (wanted - ages[right - 1]) / (ages[right] - ages[right - 1]))
    result = values[right - 1] * (1 - share)[:, None] + values[right] * share[:, None]
    beyond = wanted > ages[-1]
    if beyond.any():  # beyond the last age the error grows as depth 0's does
        growth = differences[beyond] / max(differences[t - ages[-1]], 1e-30)
        result[beyond] *= np.clip(growth, 1, 4)[:, None]
    return result
