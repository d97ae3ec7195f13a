"""Search spaces: schedules as vectors of whole numbers, which an evolutionary algorithm varies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, pairwise

import numpy as np

from dato.errors import DatoError
from dato.forecast_rule import RULES
from dato.pruning import Pruning
from dato.schedule import Schedule
from dato.search.operators import splice

# In DaTo's first generation at most so many calls are whole in the first three, next four and last three tenths of a
# schedule, beside the first call. The authors' script gives 1, 2 and 1, but draws the first two below that bound.
PAPERS_WHOLE_CALLS = (0, 1, 1)


class DepthSpace:
    """Schedules of several depths, of one length or several, with forecasts of one order or several.

    The vector begins with the *heads*: genes for the whole schedule. One chooses the length, one the order, each only
    if there are several. Then comes one gene for each call but the first, which is always whole. A shorter schedule
    does not use the last genes, and they are 0. A gene chooses a depth. If ratios are searched together with depths, it
    chooses a pair of a depth and a ratio, so that the same operators serve both. If each call has its own order, the
    gene chooses that too, and there is no head for the order.

    Args:
        calls: The lengths to choose from, in UNet calls of one generation.
        rungs: Rungs of the UNet.
        depths: The depths to choose from. The whole UNet is always one of them.
        orders: The orders of forecasts to choose from.
        forecast: What orders above 0 mean (see `Schedule`).
        ratios: The prune ratios to choose from. 0 is always one of them.
        pruning: The settings of token pruning that belong to the ratios.
        order_by_call: Whether each call has its own order. If not, a schedule has one order.

    Attributes:
        upper: (n,) the largest value of each gene. The smallest is 0. Values of a call's gene are ordered by depth,
            and within a depth from the largest ratio to the smallest, so what costs less comes first. The largest value
            is the whole call that prunes nothing.
        heads: How many genes come before those of the calls.

    Raises:
        DatoError: if there is nothing to choose, or a depth or ratio does not exist.
    """

    def __init__(
        self,
        calls: Sequence[int],
        rungs: int,
        depths: Sequence[int],
        orders: Sequence[int] = (0,),
        forecast: str = "polynomial",
        ratios: Sequence[float] = (0.0,),
        pruning: Pruning | None = None,
        order_by_call: bool = False,
    ) -> None:
        for depth in depths:
            if not 0 <= depth <= rungs:
                raise DatoError(f"`depths`: the depths of this UNet are 0 to {rungs}, not {depth}")
        self.rungs, self.forecast, self.pruning = rungs, forecast, pruning or Pruning()
        self.depths, self.ratios = sorted({*depths, rungs}), sorted({0.0, *ratios})
        _check_ratios(self.ratios, self.pruning)
        self.calls, self.orders = sorted(set(calls)), sorted(set(orders))
        if len(self.depths) < 2:
            raise DatoError(f"`depths`: besides {rungs}, the whole UNet, there must be something to choose")
        if self.calls[0] < 2:
            raise DatoError("a search needs at least two UNet calls: give more `steps`")
        if not self.orders or not set(self.orders) <= {0, 1, 2}:
            raise DatoError(f"`orders`: forecasts have order 0, 1 or 2, not {self.orders}")
        # At depth 0 nothing runs, so nothing is pruned. A whole call forecasts nothing.
        by_call: list[int | None] = [*self.orders] if order_by_call and len(self.orders) > 1 else [None]
        self.entries = [
            (d, r, o)
            for d in self.depths
            for r in ([0.0] if d == 0 else reversed(self.ratios))
            for o in (by_call if d < rungs else by_call[:1])
        ]
        heads = [("calls", self.calls), *([] if len(by_call) > 1 else [("orders", self.orders)])]
        # A gene with one choice is left out: the papers' operators would spend mutations on it.
        self._choices = {name: choices for name, choices in heads if len(choices) > 1}
        self.heads = len(self._choices)
        heads = [len(choices) - 1 for choices in self._choices.values()]
        self.upper = np.array([*heads, *[len(self.entries) - 1] * (self.calls[-1] - 1)])

    def _head(self, x: Sequence[int], name: str) -> int:
        if name not in self._choices:
            return (self.calls if name == "calls" else self.orders)[0]
        return self._choices[name][int(x[list(self._choices).index(name)])]

    def active(self, x: Sequence[int]) -> int:
        """Return how many genes of calls a vector uses."""
        return self._head(x, "calls") - 1

    def decode(self, x: Sequence[int]) -> Schedule:
        """Return the schedule of a vector of genes."""
        genes = np.asarray(x)[self.heads : self.heads + self.active(x)].astype(int).tolist()
        depths, ratios, orders = zip(self.entries[-1], *(self.entries[gene] for gene in genes), strict=True)
        if orders[0] is None:
            orders = self._head(x, "orders")
        else:  # whole calls have the highest order of the others in the canonical spelling
            highest = max((o for d, o in zip(depths, orders, strict=True) if d < self.rungs), default=0)
            orders = [o if d < self.rungs else highest for d, o in zip(depths, orders, strict=True)]
        return Schedule(depths, ratios, orders, self.rungs, self.pruning, self.forecast).canonical()

    def examples(self) -> list[Schedule]:
        """Return schedules that together have every kind of call of this space, for a latency table."""
        plain = [
            Schedule.uniform(6, 2, depth, order, rungs=self.rungs, forecast=self.forecast).canonical()
            for depth in self.depths[:-1]
            for order in self.orders
        ]
        return plain if len(self.ratios) == 1 else [*plain, *RatioSpace(plain, self.ratios, self.pruning).examples()]

    def encode(self, schedule: Schedule) -> np.ndarray | None:
        """Return the genes of a schedule, or None if its length, its order or a call of it is not in this space."""
        schedule = schedule.canonical()
        whole = set(schedule.depths) == {self.rungs}  # then every order is the same schedule
        order = self.orders[0] if whole else schedule.orders[0]
        least = self.entries[-1][2]
        chosen = [
            (depth, ratio, least if least is None or depth == self.rungs else call_order)
            for depth, ratio, call_order in schedule.entries
        ]
        if not (set(chosen) <= set(self.entries) and len(schedule) in self.calls and order in self.orders):
            return None
        if (least is None and len(set(schedule.orders)) > 1) or (
            any(schedule.orders) and schedule.forecast != self.forecast
        ):
            return None
        if chosen[0] != self.entries[-1] or (any(schedule.ratios) and schedule.pruning != self.pruning):
            return None
        values = {"calls": len(schedule), "orders": order}
        heads = [choices.index(values[name]) for name, choices in self._choices.items()]
        genes = [self.entries.index(entry) for entry in chosen[1:]]
        return np.array([*heads, *genes, *[0] * (self.calls[-1] - len(schedule))])

    def with_head(self, x: np.ndarray, gene: int, value: int) -> np.ndarray:
        """Return the vector with one head changed. If that is the length, the schedule is resampled."""
        new = x.copy()
        new[gene] = value
        if list(self._choices)[gene] != "calls":
            return new
        resampled = self.encode(self.decode(x).resampled(self.calls[value]))
        new[self.heads :] = resampled[self.heads :]
        return new

    @property
    def can_be_planned(self) -> bool:
        """Whether `dato.search.planner` can plan here. A Chebyshev forecast reads all of the past, so it cannot."""
        return RULES[self.forecast].can_be_planned or not any(self.orders)

    @property
    def seed_ratios(self) -> list[float]:
        """The ratios that every seed is tried with: 0, and a middle one if there are ratios to choose from."""
        return [0.0] if len(self.ratios) == 1 else [0.0, self.ratios[len(self.ratios) // 2]]

    def also_pruned(self, schedules: Sequence[Schedule]) -> list[Schedule]:
        """Return the schedules. If there are ratios to choose from, each is there once more with a middle ratio."""
        seeds = []
        for ratio in self.seed_ratios:
            for schedule in schedules:
                ratios = [ratio if depth and call else 0.0 for call, depth in enumerate(schedule.depths)]
                seeds.append(replace(schedule, ratios=ratios, pruning=self.pruning))
        return list(dict.fromkeys(seeds))

    def initial(self, count: int, rng: np.random.Generator, seeds: Sequence[Schedule]) -> np.ndarray:
        """Return the genes (count or more, n) of a first generation: all seeds, then seeds with a stretch of another.

        Args:
            count: Size of the population. If there are more seeds, all are returned.
            rng: Source of randomness.
            seeds: Schedules to begin from. Those outside the space are ignored. With fewer than two of them, the rest
                has whole calls at random places among shallow ones.
        """
        encoded = [genes for seed in seeds if (genes := self.encode(seed)) is not None]
        population, whole = list(encoded), len(self.entries) - 1
        while len(population) < count:
            if len(encoded) > 1:
                early, late = rng.choice(len(encoded), 2, replace=False)
                population.append(splice(self, encoded[early], encoded[late], rng))
            else:
                heads = [rng.integers(0, upper + 1) for upper in self.upper[: self.heads]]
                genes = np.array([*heads, *np.full(self.calls[-1] - 1, rng.integers(0, whole))])
                calls = np.arange(len(genes)) >= self.heads
                genes[calls & (rng.random(len(genes)) < rng.uniform(0.05, 0.5))] = whole
                genes[self.heads + self.active(genes) :] = 0
                population.append(genes)
        return np.array(population)

    def papers_initial(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return the genes (count, n) of a first generation as in DaTo's search, which has few whole calls.

        `PAPERS_WHOLE_CALLS` says how many there are at most. The other calls are shallow, at random.
        """
        shallow = sum(depth < self.rungs for depth, _, _ in self.entries)
        whole, population = len(self.entries) - 1, np.zeros((count, len(self.upper)), dtype=int)
        for x in population:
            x[: self.heads] = rng.integers(0, self.upper[: self.heads] + 1)
            n = self.active(x)
            genes = x[self.heads : self.heads + n]
            genes[:] = rng.integers(0, shallow, size=n)
            places = pairwise((0, round(0.3 * n), round(0.7 * n), n))
            for (start, stop), most in zip(places, PAPERS_WHOLE_CALLS, strict=True):
                chosen = min(stop - start, rng.integers(0, most + 1))
                genes[rng.choice(np.arange(start, stop), size=chosen, replace=False)] = whole
        return population


class RatioSpace:
    """Prune ratios on top of the schedules of an earlier search.

    The first gene chooses the schedule. Then comes one gene for each call. At depth 0 nothing runs, so nothing is
    pruned: the ratio of such a call is 0 whatever its gene.

    Args:
        bases: The schedules.
        ratios: The ratios to choose from.
        pruning: The settings of token pruning that belong to the ratios.
    """

    def __init__(self, bases: Sequence[Schedule], ratios: Sequence[float], pruning: Pruning) -> None:
        self.bases = [replace(base, pruning=pruning) for base in bases]
        self.heads = 1
        self.ratios = sorted(set(ratios))
        _check_ratios(self.ratios, pruning)
        if len(self.ratios) < 2:
            raise DatoError("`ratios`: there must be at least two to choose from")
        calls = max(len(base) for base in self.bases)
        self.upper = np.array([len(self.bases) - 1, *[len(self.ratios) - 1] * calls])

    def decode(self, x: Sequence[int]) -> Schedule:
        """Return the schedule of a vector of genes."""
        base = self.bases[int(x[0])]
        ratios = [self.ratios[int(g)] if d else 0.0 for g, d in zip(x[1 : 1 + len(base)], base.depths, strict=True)]
        return base.with_ratios(ratios)

    def examples(self) -> list[Schedule]:
        """Return schedules that together have every kind of call of this space, for a latency table."""
        # A call of ratio 0 in a schedule that prunes elsewhere is another kind of call than in one that never prunes.
        least, most = self.ratios[0], self.ratios[-1]
        pairs = [(least, most), (most, least), *((ratio, ratio) for ratio in self.ratios)]
        schedules = []
        for base in self.bases:
            for pair in pairs:
                turns = cycle(pair)  # only calls that run alternate: calls of depth 0 prune nothing
                schedules.append(base.with_ratios([next(turns) if depth else 0.0 for depth in base.depths]))
        return schedules

    def active(self, x: Sequence[int]) -> int:
        """Return how many genes of calls a vector uses."""
        return len(self.bases[int(x[0])])

    def with_head(self, x: np.ndarray, gene: int, value: int) -> np.ndarray:
        """Return the vector with another schedule. The ratios stay where they are in time."""
        new = np.zeros_like(x)
        new[gene] = value
        before, now = self.active(x), self.active(new)
        new[1 : 1 + now] = x[1 + np.arange(now) * before // now]
        return new

    def initial(self, count: int, rng: np.random.Generator, seeds: Sequence[Schedule] = ()) -> np.ndarray:
        """Return the genes (count or more, n) of a first generation.

        It has every schedule with its lowest ratio, then schedules with one ratio throughout.
        """
        population = [np.array([base, *np.zeros(len(self.upper) - 1)]) for base in range(len(self.bases))]
        while len(population) < max(count, 2 * len(self.bases)):
            x = np.zeros(len(self.upper))
            x[0] = len(population) % len(self.bases)
            x[1 : 1 + self.active(x)] = rng.integers(1, len(self.ratios))
            population.append(x)
        return np.array(population).astype(int)

    def papers_initial(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return random genes (count, n)."""
        return rng.integers(0, self.upper + 1, size=(count, len(self.upper)))


def _check_ratios(ratios: Sequence[float], pruning: Pruning) -> None:
    bound = 1 - 1 / (pruning.sx * pruning.sy)
    for ratio in ratios:
        if not 0 <= ratio <= bound:
            patch = f"{pruning.sy} x {pruning.sx}"
            raise DatoError(f"`ratios`: with patches of {patch}, ratios go from 0 to {bound:g}, not {ratio:g}")
