"""The beam search of the planner: dynamic programming over the calls of a schedule.

A *label* is a partial schedule. It has a cost, the error and doubt so far, and the state of its cache: the calls that
computed what each depth reads, and the errors of those calls. Call by call, every label is extended by every depth.
Labels are compared if their costs and the ages of their deepest caches are alike, and those of least error are kept.
Errors are vectors that may cancel, so a dropped label might have become better later. If all labels are kept, the plan
is exact. If a few are kept for each cost and age, it is a beam search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from dato.call import forecast_made, last_turns, places_computed
from dato.prediction.error_model import DOUBT, Sensitivity
from dato.prediction.latency_table import CallKind
from dato.schedule import Schedule

LENGTH = 48  # length of the projections that plans are made with


@dataclass
class Labels:
    """Partial schedules, as arrays with one row for each label.

    L labels of n calls, with P partial depths, S slots for each depth's past values, and projections of length k.

    Attributes:
        path: (L, n) the depth of each call, as an index into the alphabet.
        price: (L,) the cost.
        error: (L, k) the weighted sum of the calls' errors.
        doubt: (L,) the weighted sum of the lengths of all vectors in `error`.
        source: (L, P, S) the calls that computed what each depth reads, the latest first.
        filled: (L, P) the number of slots that hold a value.
        computed: (L, P) how often what each depth reads was computed, also twice at one timestep: latency tables do not
            depend on timesteps.
        source_error: (L, P, S, k) the errors of the calls in `source`.
        source_doubt: (L, P, S) the lengths of all vectors in these errors.
    """

    path: np.ndarray
    price: np.ndarray
    error: np.ndarray
    doubt: np.ndarray
    source: np.ndarray
    filled: np.ndarray
    computed: np.ndarray
    source_error: np.ndarray
    source_doubt: np.ndarray

    @classmethod
    def first(cls, whole: int, price: float, offset: np.ndarray, k: int, partial: int, slots: int) -> Labels:
        """Return the one label after the first call, which is whole and has no error."""
        return cls(
            path=np.full((1, 1), whole, dtype=np.int8),
            price=np.array([price]),
            error=np.zeros((1, k), np.float32) + offset,
            doubt=np.zeros(1),
            source=np.zeros((1, partial, slots), dtype=np.int64),
            filled=np.ones((1, partial), dtype=np.int64),
            computed=np.ones((1, partial), dtype=np.int64),
            source_error=np.zeros((1, partial, slots, k), np.float32),
            source_doubt=np.zeros((1, partial, slots)),
        )

    def __len__(self) -> int:
        """The number of labels."""
        return len(self.price)

    def take(self, rows: np.ndarray) -> Labels:
        """Return the labels of these rows, in their order."""
        return Labels(*(getattr(self, field.name)[rows] for field in fields(self)))

    def refresh(self, column: int, rows: np.ndarray, call: int, again: np.ndarray, extensions: Extensions) -> None:
        """Take in what a call computed of the place that one partial depth reads.

        Args:
            column: The partial depth's index.
            rows: The labels whose call computed it.
            call: The call.
            again: (rows,) whether the value replaces the last one, because it has the same timestep.
            extensions: What the call added, one row for each label.
        """
        pushed = rows[~again]
        for slots in (self.source, self.source_error, self.source_doubt):
            slots[pushed, column, 1:] = slots[pushed, column, :-1]
        self.filled[pushed, column] = np.minimum(self.filled[pushed, column] + 1, self.source.shape[2])
        self.computed[rows, column] += 1
        self.source[rows, column, 0] = call
        self.source_error[rows, column, 0] = extensions.call_error[rows]
        self.source_doubt[rows, column, 0] = extensions.call_doubt[rows]


@dataclass
class Extensions:
    """Labels extended by one call, one row for each extension.

    Attributes:
        parent: (E,) the label, as an index.
        depth: (E,) the call's depth, as an index into the alphabet.
        call_error: (E, k) the call's error.
        call_doubt: (E,) the lengths of all vectors in `call_error`.
        price: (E,) the cost, with this call's.
        error: (E, k) the weighted sum of errors, with this call's.
        doubt: (E,) the weighted sum of lengths, with this call's.
    """

    parent: np.ndarray
    depth: np.ndarray
    call_error: np.ndarray
    call_doubt: np.ndarray
    price: np.ndarray
    error: np.ndarray
    doubt: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Extensions]) -> Extensions:
        """Return several sets of extensions as one."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def take(self, rows: np.ndarray) -> Extensions:
        """Return the extensions of these rows, in their order."""
        return Extensions(*(getattr(self, field.name)[rows] for field in fields(self)))


class Beam:
    """The beam search over schedules of one number of calls and one order.

    Args:
        model: The error model.
        cost: Returns the cost of one call.
        depths: The alphabet, ascending, with the whole UNet.
        order: The order of forecasts.
        forecast: What an order above 0 means.
    """

    def __init__(
        self,
        model: Sensitivity,
        cost: Callable[[CallKind], float],
        depths: Sequence[int],
        order: int,
        forecast: str,
    ) -> None:
        self._model, self._order, self._forecast = model, order, forecast
        self._depths, self._partial = np.array(depths), [depth for depth in depths if depth < model.rungs]
        self._times = np.array(model.times)
        self._since = last_turns(model.times)
        self._stale = {depth: _shortened(model.stale[depth]) for depth in self._partial}
        # A call's price by the number of values that it finds, less 1.
        self._prices = {
            depth: np.array([cost(_kind(depth, found, order, forecast, model.rungs)) for found in range(1, order + 2)])
            for depth in depths
        }

    def schedules(self, bins: int, width: int) -> list[tuple[float, Schedule]]:
        """Return (cost, schedule) of the labels that are left at the end."""
        model, slots, calls = self._model, self._order + 1, len(self._model)
        k = next(iter(self._stale.values())).shape[-1] if self._partial else 1
        price, offset = self._prices[model.rungs][0], _shortened(model.offset)
        labels = Labels.first(len(self._depths) - 1, price, offset, k, len(self._partial), slots)
        dearest = sum(max(prices.max() for prices in self._prices.values()) for _ in range(calls))
        for call in range(1, calls):
            parts = [self._extended(labels, call, number) for number in range(len(self._depths))]
            extensions = Extensions.joined(parts)
            kept = self._best(labels, extensions, call, dearest / bins, width)
            labels = self._continued(labels, extensions.take(kept), call)
        return [(float(price), self._schedule(row)) for price, row in zip(labels.price, labels.path, strict=True)]

    def _extended(self, labels: Labels, call: int, number: int) -> Extensions:
        """Return every label extended by a call of depth `number` of the alphabet."""
        model, depth = self._model, int(self._depths[number])
        error, doubt, price = np.zeros_like(labels.error), np.zeros(len(labels)), self._prices[depth][0]
        if depth < model.rungs:
            column = self._partial.index(depth)
            source = labels.source[:, column]
            recent = (source >= self._since[call]).sum(axis=1)  # others are from before the timesteps turned
            filled = np.minimum(labels.filled[:, column], recent.clip(1))
            weights = _weights(self._times, source, filled, call)
            errors = self._stale[depth][call][source] + labels.source_error[:, column]
            error = np.einsum("ls,lsk->lk", weights, errors)
            sizes = model.sizes[depth][call][source] + labels.source_doubt[:, column]
            doubt = (np.abs(weights) * sizes).sum(axis=1)
            price = self._prices[depth][np.minimum(labels.computed[:, column] - 1, self._order)]
        return Extensions(
            parent=np.arange(len(labels)),
            depth=np.full(len(labels), number),
            call_error=error,
            call_doubt=doubt,
            price=labels.price + price,
            error=labels.error + np.float32(model.weights[call]) * error,
            doubt=labels.doubt + DOUBT * np.abs(model.weights[call]) * doubt,
        )

    def _best(self, labels: Labels, extensions: Extensions, call: int, bin_size: float, width: int) -> np.ndarray:
        """Return the rows of the extensions that are kept."""
        deepest = labels.source[:, -1, 0] if self._partial else np.zeros(len(labels), dtype=np.int64)
        whole = self._depths[extensions.depth] == self._model.rungs
        latest = np.where(whole, call, deepest[extensions.parent])
        size = np.square(extensions.error).sum(axis=1) + np.square(extensions.doubt)
        return _best(extensions.price, size, latest, bin_size, width)

    def _continued(self, labels: Labels, extensions: Extensions, call: int) -> Labels:
        """Return the labels that extensions become. What they computed is in their caches."""
        labels = labels.take(extensions.parent)
        labels.path = np.concatenate([labels.path, extensions.depth[:, None].astype(np.int8)], axis=1)
        labels.price, labels.error, labels.doubt = extensions.price, extensions.error, extensions.doubt
        for column, depth in enumerate(self._partial):
            computing = [depth - 1 in places_computed(int(other)) for other in self._depths]
            rows = np.flatnonzero(np.array(computing)[extensions.depth])
            again = self._times[labels.source[rows, column, 0]] == self._times[call]
            labels.refresh(column, rows, call, again, extensions)
        return labels

    def _schedule(self, path: np.ndarray) -> Schedule:
        depths = self._depths[path].tolist()
        return Schedule(depths, None, self._order, self._model.rungs, forecast=self._forecast).canonical()


def _kind(depth: int, found: int, order: int, forecast: str, rungs: int) -> CallKind:
    """Return the kind of a call that finds `found` values, as `dato.prediction.latency_table.call_kinds` does."""
    if depth == rungs:
        return CallKind(depth)
    return CallKind(depth, None, *forecast_made(forecast, order, depth, found))


def _shortened(vectors: np.ndarray | float) -> np.ndarray:
    """Return projections of at most `LENGTH` numbers."""
    k = vectors.shape[-1] if np.ndim(vectors) else 0
    if k <= LENGTH:
        return np.asarray(vectors, dtype=np.float32)
    mix = np.random.default_rng(0).standard_normal((k, LENGTH)) / LENGTH**0.5
    return (vectors @ mix).astype(np.float32)


def _weights(times: np.ndarray, source: np.ndarray, filled: np.ndarray, call: int) -> np.ndarray:
    """Return (labels, slots), the weights of the polynomial through the values in each label's filled slots."""
    labels, slots = source.shape
    at, weights = times[source], np.ones((labels, slots), np.float32)
    for i in range(slots):
        for j in range(slots):
            if i != j:
                both = (filled > i) & (filled > j)
                distance = np.where(both, at[:, i] - at[:, j], 1.0)
                weights[:, i] *= np.where(both, (times[call] - at[:, j]) / distance, 1.0)
        weights[filled <= i, i] = 0.0
    return weights


def _best(price: np.ndarray, size: np.ndarray, latest: np.ndarray, bin_size: float, width: int) -> np.ndarray:
    """Return the rows of least error in each class of cost and age, at most `width` of each class."""
    bins = np.floor(price / bin_size).astype(np.int64)
    rank = np.lexsort((price, size, latest, bins))
    bins, latest = bins[rank], latest[rank]
    begins = np.ones(len(rank), dtype=bool)
    begins[1:] = (bins[1:] != bins[:-1]) | (latest[1:] != latest[:-1])
    first = np.maximum.accumulate(np.where(begins, np.arange(len(rank)), 0))
    return rank[np.arange(len(rank)) - first < width]
