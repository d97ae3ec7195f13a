"""A sensitivity model: what error of the final latent a schedule will have, from two generations and shallow calls.

Measured once, along the stock trajectory: E(t, d, s), the error of the (guided) prediction of call t when it runs at
depth d on what call s computed, for a few ages t - s; at depth 0 it is the difference of two stock predictions and
costs nothing. All errors are kept as vectors, as random projections of them, because those of neighbouring calls point
the same way and add up. Everything else follows to first order:

- a forecast is a weighted sum of past values, so its error is the same sum of E (orders 1 and 2 need no calls of
  their own; an aligned forecast is taken for the line);
- what a partial call computes is wrong itself: the total error of a call is its own plus its sources' totals,
  weighted as the forecast weighs them;
- the final latent's error is the weighted sum of all totals, with the sampler's and the network's answer counted in
  (`dato.prediction.sampler_response`).

Vectors may cancel, in a forecast as in the sum, and a search finds the schedules in which they seem to. But they are
known only to some percent: so `DOUBT` times the sum of all their lengths counts as an error, too, square by square.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from diffusers import SchedulerMixin

from dato.errors import DatoError
from dato.prediction.sampler_response import effective_weights, sampler_response
from dato.pruning import Pruning
from dato.schedule import Schedule
from dato.unet.forecast import chebyshev, polynomial

FORMAT = "dato.sensitivity"
VERSION = 1
DOUBT = 0.1  # of 0.05, 0.1, 0.2 and 0.4 the one whose plans were best over all budgets (emoji-sd, DPM++ 2M)


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What was measured; T calls, projections of length k, A ages.

    Attributes:
        rungs: Rungs of the UNet.
        times: (T,) timesteps.
        weights: (T,) the final latent's error for an error of 1 in one call's prediction.
        feedback: (T,) by how much a prediction changes for a change of 1 of the latent as the network gets it.
        final: (k,) stock's final latent, divided likewise as the predictions.
        ages: (A,) ages at which partial calls were measured, ascending; a call t that has no call so far back was
            measured at age t instead.
        predictions: (T, k) stock's guided predictions, divided by the square root of their number of values.
        partial: Depth -> (T, A, k) errors E of partial calls, divided likewise.
        pruned: (depth, ratio) -> (T, k) errors of calls that prune and whose cache is fresh, divided likewise.
        pruning: What the ratios are meant with.
        unet_calls: What measuring cost, in UNet calls of one image, by time.
        offset: (k,) or 0: what the final latent of stock of this length is off the one that schedules are judged by,
            where that is of another length (`against`).
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

    def __len__(self) -> int:
        """The number of calls."""
        return len(self.times)

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths that are known, the whole UNet and 0 among them."""
        return (0, *sorted(self.partial), self.rungs)

    @cached_property
    def stale(self) -> dict[int, np.ndarray]:
        """Depth -> (T, T, k): E(t, d, s) at [t, s] for s < t, interpolated between the ages that were measured."""
        calls = len(self)
        p = self.predictions
        tables = {0: p[None, :] - p[:, None]}
        for depth, known in self.partial.items():
            table = np.zeros((calls, calls, p.shape[1]), dtype=np.float32)
            for t in range(1, calls):
                ages, first = np.unique(np.minimum(self.ages, t), return_index=True)
                # An error begins at 0; beyond the last age it grows on as depth 0's does.
                values = np.concatenate([np.zeros((1, p.shape[1])), known[t, first]])
                ages = np.concatenate([[0], ages])
                wanted = t - np.arange(t)
                right = np.minimum(np.searchsorted(ages, wanted), len(ages) - 1)
                share = np.minimum(1, (wanted - ages[right - 1]) / (ages[right] - ages[right - 1]))
                own = values[right - 1] * (1 - share)[:, None] + values[right] * share[:, None]
                beyond = wanted > ages[-1]
                if beyond.any():
                    size = np.linalg.norm(tables[0][t, :t], axis=1)
                    growth = size[beyond] / max(size[t - ages[-1]], 1e-30)
                    own[beyond] *= np.clip(growth, 1, 4)[:, None]
                table[t, :t] = own
            tables[depth] = table
        return tables

    @cached_property
    def sizes(self) -> dict[int, np.ndarray]:
        """Depth -> (T, T): the lengths of `stale`."""
        return {depth: np.linalg.norm(table, axis=2) for depth, table in self.stale.items()}

    def totals(self, schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
        """(T, k) the error of each call's prediction, in projection; (T,) the lengths of all that was summed up in it.

        Raises:
            DatoError: if the schedule has another length, or a depth or ratio that was not measured.
        """
        schedule = schedule.for_rungs(self.rungs)
        if len(schedule) != len(self):
            raise DatoError(f"sensitivity: it is of {len(self)} calls, and the schedule has {len(schedule)}")
        if any(schedule.ratios) and schedule.pruning != self.pruning:
            raise DatoError("sensitivity: it was measured with other settings of pruning than the schedule's")
        totals, lengths = np.zeros((len(self), self.predictions.shape[1])), np.zeros(len(self))
        past: defaultdict[int, list[int]] = defaultdict(list)  # the calls that computed what a depth reads
        for call, (depth, ratio, order) in enumerate(schedule.entries):
            if depth not in self.depths:
                raise DatoError(f"sensitivity: depth {depth} was not measured; known are {self.depths}")
            if depth < self.rungs:
                sources = past[depth] if schedule.forecast == "chebyshev" and order else past[depth][-order - 1 :]
                if schedule.forecast == "chebyshev" and len(sources) > 1:
                    weights = chebyshev(sources, call, len(schedule))
                else:
                    weights = polynomial([self.times[s] for s in sources], self.times[call])
                for source, weight in zip(sources, weights, strict=True):
                    totals[call] += weight * (self.stale[depth][call, source] + totals[source])
                    lengths[call] += abs(weight) * (self.sizes[depth][call, source] + lengths[source])
            if ratio and depth:
                if (depth, ratio) not in self.pruned:
                    raise DatoError(f"sensitivity: ratio {ratio:g} at depth {depth} was not measured")
                totals[call] += self.pruned[depth, ratio][call]
            for other in self.depths:
                if other < depth:
                    known = past[other]
                    if known and self.times[known[-1]] == self.times[call]:
                        known.pop()
                    known.append(call)
        return totals, lengths

    def error(self, schedule: Schedule) -> float:
        """The predicted mean square error of the final latent against stock's. Raises DatoError as `totals`."""
        totals, lengths = self.totals(schedule)
        sum_of_errors = self.offset + self.weights @ totals
        return float(np.square(sum_of_errors).sum() + (DOUBT * np.abs(self.weights) @ lengths) ** 2)

    def against(self, reference: Sensitivity) -> Sensitivity:
        """The model of schedules that are judged by another length's stock, from the same prompts and noise."""
        return replace(self, offset=self.final - reference.final)

    def for_steps(self, scheduler: SchedulerMixin, steps: int, final: np.ndarray) -> Sensitivity:
        """The model of another number of steps, read off this one at the timesteps in between.

        Samplers of one differential equation take nearly the same way in any number of steps. What differs, the
        sampler's response, is computed anew.

        Args:
            scheduler: The sampler.
            steps: Preferably fewer: then the ages that were measured reach as far.
            final: (k,) stock's final latent in so many steps (`dato.prediction.error_measure.final_latent`).
        """
        response = sampler_response(scheduler, steps)
        calls = len(response.times)
        # (calls, T): each new call is a mean of two old ones. Timesteps fall, and PLMS has one of them twice.
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
            ages=ages,
            predictions=(mix @ self.predictions).astype(np.float32),
            partial=partial,
            pruned={kind: mix @ errors for kind, errors in self.pruned.items()},
            unet_calls=0.0,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; arrays as base64 of little-endian float16, with their scale."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "rungs": self.rungs,
            "times": list(self.times),
            "weights": self.weights.tolist(),
            "feedback": self.feedback.tolist(),
            "final": self.final.tolist(),
            "ages": list(self.ages),
            "predictions": _pack(self.predictions),
            "partial": [[depth, _pack(array)] for depth, array in self.partial.items()],
            "pruned": [[depth, ratio, _pack(array)] for (depth, ratio), array in self.pruned.items()],
            "pruning": self.pruning.to_dict(),
            "unet_calls": self.unet_calls,
            "offset": None if np.ndim(self.offset) == 0 else self.offset.tolist(),
        }

    @classmethod
    def from_dict(cls, data: Any) -> Sensitivity:
        """The inverse of `to_dict`, up to rounding. Raises DatoError if something is missing or does not fit."""
        try:
            if data["format"] != FORMAT or data["version"] != VERSION:
                raise ValueError("format or version is another")
            times, ages = tuple(map(float, data["times"])), tuple(map(int, data["ages"]))
            made = cls(
                rungs=int(data["rungs"]),
                times=times,
                weights=np.array(data["weights"], dtype=float),
                feedback=np.array(data["feedback"], dtype=float),
                final=np.array(data["final"], dtype=float),
                ages=ages,
                predictions=_unpack(data["predictions"]),
                partial={int(depth): _unpack(packed) for depth, packed in data["partial"]},
                pruned={(int(depth), float(ratio)): _unpack(packed) for depth, ratio, packed in data["pruned"]},
                pruning=Pruning.from_dict(data["pruning"]),
                unet_calls=float(data["unet_calls"]),
                offset=0.0 if data["offset"] is None else np.array(data["offset"], dtype=float),
            )
            calls, k = len(times), made.predictions.shape[-1]
            shapes = [
                (made.weights, (calls,)),
                (made.feedback, (calls,)),
                (made.predictions, (calls, k)),
                (made.final, (k,)),
            ]
            shapes += [(array, (calls, len(ages), k)) for array in made.partial.values()]
            shapes += [(array, (calls, k)) for array in made.pruned.values()]
            if np.ndim(made.offset):
                shapes.append((made.offset, (k,)))
            if not calls or any(array.shape != shape or not np.isfinite(array).all() for array, shape in shapes):
                raise ValueError("an array has a wrong shape or is not finite")
            if list(ages) != sorted(set(ages)) or min(ages, default=0) < 1:
                raise ValueError("ages must ascend from 1 or more")
            if not all(0 < depth < made.rungs for depth in made.partial):
                raise ValueError("a depth is out of range")
            return made
        except (KeyError, TypeError, ValueError) as error:
            raise DatoError(f"not a sensitivity model: {type(error).__name__}: {error}") from None


def _pack(array: np.ndarray) -> dict[str, Any]:
    scale = float(np.abs(array).max(initial=0.0)) or 1.0
    values = (array / scale).astype("<f2")
    return {"shape": list(array.shape), "scale": scale, "data": base64.b64encode(values.tobytes()).decode()}


def _unpack(packed: dict[str, Any]) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(packed["data"], validate=True), dtype="<f2")
    return values.reshape(packed["shape"]).astype(np.float32) * np.float32(packed["scale"])
