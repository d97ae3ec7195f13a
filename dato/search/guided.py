"""Guided search: NSGA-II evolves schedules on predictions, and the most promising ones are judged by their images.

This pays because a prediction takes a millisecond and a judgement takes many generations. Every round evolves a
population on the predictions of the adviser, judges a few of its schedules, and tells the adviser the results. The
budget is spent evenly over classes of speed-up, `CLASSES` to an octave. So fast schedules, which cost little, get many
trials. A class in which trials improve the front gets more, and one in which they do not is left.

Source: Jin, "Surrogate-assisted evolutionary computation: recent advances and future challenges" (2011).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.evaluator import Evaluator as PymooEvaluator
from pymoo.core.problem import Problem
from pymoo.problems.static import StaticProblem

from dato.point import Point, non_dominated
from dato.schedule import Schedule
from dato.search.operators import LocalMoves, SpliceCrossover
from dato.search.spaces import DepthSpace

CLASSES = 6  # classes of speed-up to an octave
POPULATION = 100
FIRST_GENERATIONS, GENERATIONS = 200, 20  # of the first round and of each later one
FINENESS = 0.01  # latencies closer than this share count as equal, so that quality decides
CROSSOVER = 0.3  # probability; most offspring are one parent with small changes
MARGIN = 6.0  # dB; a seed that is predicted to be worse than its class's best by more is not among the early trials
PATIENCE = 4  # trials in a row without a better front after which a class of speed-up is left


class Predictor(Protocol):
    """Predicts the results of schedules without generating images."""

    def guess_all(self, schedules: Sequence[Schedule]) -> tuple[np.ndarray, np.ndarray]:
        """Return qualities (-inf where nothing is known) and latencies (milliseconds per image), (B,) each."""
        ...

    def tell(self, points: Sequence[Point]) -> None:
        """Learn from all points that were judged so far."""
        ...


@dataclass
class SpeedClass:
    """One class of speed-up.

    Attributes:
        slowest: Its lowest speed-up. It ends where the next class begins.
        price: What a trial in it costs, in images of stock.
        spent: The cost of its trials, in images of stock.
        trials: The number of its trials.
        better: How many of them improved the front.
        in_vain: How many trials in a row, up to the last one, did not.
    """

    slowest: float
    price: float
    spent: float = 0.0
    trials: int = 0
    better: int = 0
    in_vain: int = 0

    @property
    def turn(self) -> float:
        """The class with the least value is next.

        Little will have been spent on it, this trial included, and its trials improved the front. So a slow class
        has its first trial when the fast ones have had several.
        """
        return (self.spent + self.price) / (0.5 + (self.better + 1) / (self.trials + 1))


@dataclass
class Trials:
    """The judged schedules, and what was spent on each class of speed-up.

    Args:
        range: The lowest and highest speed-up that is searched.
        stock_ms: Stock's milliseconds per image.
        cost_of: Returns what judging a schedule has cost, in images of stock.
        images: The number of images that a trial takes.
    """

    range: tuple[float, float]
    stock_ms: float
    cost_of: Callable[[Point], float]
    images: int = 1
    points: list[Point] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.classes = [SpeedClass(slowest, self.images / slowest) for slowest in per_octave(self.range, CLASSES)[:-1]]

    @property
    def spent(self) -> float:
        """The cost of all trials, in images of stock."""
        return sum(one.spent for one in self.classes)

    def class_of(self, latency_ms: float) -> SpeedClass:
        """Return the class of a latency; those beyond the ends count to the first and the last class."""
        speedup = self.stock_ms / latency_ms * (1 + 1e-9)
        return next((one for one in reversed(self.classes) if one.slowest <= speedup), self.classes[0])

    def add(self, point: Point) -> None:
        """Take in a trial."""
        before = non_dominated(self.points)
        self.points.append(point)
        one = self.class_of(point.latency_ms) if math.isfinite(point.latency_ms) else self.classes[-1]
        one.spent += self.cost_of(point)
        one.trials += 1
        improved = point.quality > quality_at(before, point.latency_ms)
        one.better += improved
        one.in_vain = 0 if improved else one.in_vain + 1


def evenly(ends: tuple[float, float], parts: int) -> list[float]:
    """Return the `parts + 1` speed-ups that divide a range evenly by their logarithm, both ends included."""
    low, high = ends
    return [low * (high / low) ** (i / parts) for i in range(parts + 1)]


def per_octave(ends: tuple[float, float], count: int) -> list[float]:
    """Return the speed-ups that divide a range into `count` parts for each octave; see `evenly`."""
    low, high = ends
    return evenly(ends, max(1, round(count * math.log2(high / low))))


def quality_at(front: Sequence[Point], latency_ms: float) -> float:
    """Return the best quality on a front at this latency or less; -inf if there is none."""
    return max((point.quality for point in front if point.latency_ms <= latency_ms), default=-math.inf)


def hypervolume_gain(
    front: Sequence[Point], quality: float, latency_ms: float, least: float, slowest_ms: float
) -> float:
    """Return by how much a point would raise the hypervolume, over the logarithm of latency.

    Args:
        front: Non-dominated points, latency ascending.
        quality: The point's quality.
        latency_ms: Its latency.
        least: The quality where the front has no point.
        slowest_ms: The latency at which the front ends.
    """
    gain, at, best = 0.0, latency_ms, max(least, quality_at(front, latency_ms))
    for point in (*(p for p in front if p.latency_ms > latency_ms), None):
        end = slowest_ms if point is None else min(point.latency_ms, slowest_ms)
        gain += max(0.0, quality - best) * max(0.0, math.log(end / at))
        at, best = max(at, end), best if point is None else max(best, point.quality)
    return gain


def guided_search(
    evolution: Evolution,
    ask: Callable[[Sequence[Schedule]], Iterable[Point]],
    *,
    seed: int = 0,
    budget: float = math.inf,
    together: int = 4,
    first: Sequence[Schedule] = (),
) -> Iterator[Point]:
    """Search, and yield each point as soon as it is judged. The non-dominated points are the front.

    Args:
        evolution: The population to begin from, without trials yet.
        ask: Returns the points of schedules in their order (as `dato.search.study.Study` does).
        seed: Fixes everything random in the search. The same seed and the same judgements give the same points.
        budget: What all trials may cost, in images of stock. The last trial may exceed it by a part of its cost.
        together: The number of schedules that are judged in one round at most.
        first: Schedules to judge before all others, as far as the budget goes.
    """
    trials, generations, number = evolution.trials, FIRST_GENERATIONS, 0

    def judge(schedules: Sequence[Schedule]) -> Iterator[Point]:
        for point in ask(schedules):
            trials.add(point)
            yield point
        evolution.adviser.tell(trials.points)

    for start in range(0, len(first), together):
        if trials.spent < budget:
            yield from judge(first[start : start + together])
    while trials.spent < budget:
        evolution.run(generations, seed + number)
        chosen = evolution.promising(together, budget - trials.spent)
        if not chosen:
            if generations == FIRST_GENERATIONS and number:
                return
            generations, number = FIRST_GENERATIONS, number + 1  # one more chance
            continue
        yield from judge(chosen)
        generations, number = GENERATIONS, number + 1


class Evolution:
    """A population that NSGA-II evolves on predictions.

    Args:
        space: The schedules to choose from.
        adviser: Predicts their results.
        trials: Where to search, and what was judged.
        seeds: Schedules to begin from.
    """

    def __init__(self, space: DepthSpace, adviser: Predictor, trials: Trials, seeds: Sequence[Schedule]) -> None:
        self.space, self.adviser, self.trials = space, adviser, trials
        self._genes = self._encoded(seeds)
        self._early = self._early_trials([space.decode(genes) for genes in self._genes])
        self.schedules: list[Schedule] = []
        self.quality = self.latency = np.zeros(0)

    def _encoded(self, schedules: Iterable[Schedule]) -> list[np.ndarray]:
        return [genes for schedule in schedules if (genes := self.space.encode(schedule)) is not None]

    def run(self, generations: int, seed: int) -> None:
        """Evolve, from the best of the seeds or of the last population, and from the front."""
        begin = [*self._encoded(point.schedule for point in non_dominated(self.trials.points)), *self._genes]
        begin = list({tuple(genes): genes for genes in begin}.values())
        rng = np.random.default_rng(seed)
        if not begin:
            begin = list(self.space.initial(POPULATION, rng, []))
        upper = self.space.upper
        problem = Problem(n_var=len(upper), n_obj=2, n_ieq_constr=1, xl=np.zeros(len(upper)), xu=upper, vtype=int)
        algorithm = NSGA2(
            pop_size=POPULATION,
            sampling=np.array(begin),
            crossover=SpliceCrossover(self.space, prob=CROSSOVER),
            mutation=LocalMoves(self.space),
            eliminate_duplicates=True,
        )
        algorithm.setup(problem, termination=("n_gen", generations), seed=seed, verbose=False)
        while algorithm.has_next():
            individuals = algorithm.ask()
            if individuals is None:  # the whole space has been tried
                break
            _, quality, latency = self._guess(individuals.get("X"))
            steps = np.round(np.log(latency) / FINENESS)
            values = {"F": np.stack([-quality, steps], axis=1), "G": self._outside(latency)[:, None]}
            PymooEvaluator().eval(StaticProblem(problem, **values), individuals)
            algorithm.tell(infills=individuals)
        self._genes = list(algorithm.pop.get("X").astype(int))
        self.schedules, self.quality, self.latency = self._guess(self._genes)

    def _guess(self, genes: Sequence[np.ndarray]) -> tuple[list[Schedule], np.ndarray, np.ndarray]:
        schedules = [self.space.decode(x) for x in genes]
        quality, latency = self.adviser.guess_all(schedules)
        return schedules, np.maximum(quality, -1e9), latency

    def _outside(self, latency: np.ndarray) -> np.ndarray:
        """Return by how much speed-ups leave the range that is searched, in octaves; below 0 inside."""
        octaves = np.log2(self.trials.stock_ms / latency)
        low, high = np.log2(self.trials.range)
        return np.maximum(low - octaves, octaves - high) - 1e-9

    def _early_trials(self, seeds: Sequence[Schedule]) -> dict[int, list[Schedule]]:
        """Return for each class the best seed of each order, without those that are far worse than the class's best."""
        best: dict[tuple[int, tuple[int, ...]], tuple[float, Schedule]] = {}
        for schedule, quality, latency in zip(seeds, *self.adviser.guess_all(seeds), strict=True):
            if self._outside(latency) <= 0:
                key = self._number(latency), tuple(set(schedule.orders))
                best[key] = max(best.get(key, (-math.inf, schedule)), (quality, schedule), key=lambda one: one[0])
        early: dict[int, list[tuple[float, Schedule]]] = {}
        for (number, _), one in sorted(best.items(), key=lambda item: -item[1][0]):
            early.setdefault(number, []).append(one)
        return {number: [s for quality, s in ones if quality > ones[0][0] - MARGIN] for number, ones in early.items()}

    def _number(self, latency: float) -> int:
        return self.trials.classes.index(self.trials.class_of(latency))

    def promising(self, count: int, budget: float = math.inf) -> list[Schedule]:
        """Return at most `count` schedules to judge, at most one of each class of speed-up.

        If they would cost more than `budget` images of stock, the last ones are left out, but never the first.

        The first one of a class is the one of best predicted quality. Then come the best seeds of each order: they are
        regular, and show where predictions are too good for what is irregular. Later it is the one that is predicted
        to raise the front's hypervolume most.

        The depths of a judged schedule are not judged again with other orders: predictions err by more than that.
        """
        judged = {point.schedule.depths for point in self.trials.points}
        front = non_dominated(self.trials.points)
        least, slowest_ms = float(self.quality.min(initial=0.0)), self.trials.stock_ms / self.trials.range[0] * 1.001
        best: dict[int, tuple[float, Schedule]] = {}
        inside = self._outside(self.latency) <= 0
        for schedule, quality, latency, allowed in zip(
            self.schedules, self.quality.tolist(), self.latency.tolist(), inside.tolist(), strict=True
        ):
            number = self._number(latency)
            if not allowed or schedule.depths in judged:
                continue
            volume = hypervolume_gain(front, quality, latency, least, slowest_ms)
            gain = volume if self.trials.classes[number].trials else 1 + quality - least  # above 0 for the worst, too
            if gain > best.get(number, (0.0, None))[0]:
                best[number] = gain, schedule
        chosen = {number: schedule for number, (_, schedule) in best.items()}
        for number, early in self._early.items():
            left = [schedule for schedule in early if schedule.depths not in judged]
            if left and 1 <= self.trials.classes[number].trials <= len(early):
                chosen[number] = left[0]
        turns = [number for number in chosen if self.trials.classes[number].in_vain < PATIENCE]
        turns.sort(key=lambda number: (self.trials.classes[number].turn, -number))
        costs = itertools.accumulate(self.trials.classes[number].price for number in turns[:count])
        return [
            chosen[n] for place, (n, cost) in enumerate(zip(turns, costs, strict=False)) if cost <= budget or not place
        ]

    def untried(self) -> list[tuple[float, Schedule]]:
        """Return the schedule of best predicted quality in each class without trials, with its latency."""
        self.schedules, self.quality, self.latency = self._guess(self._genes)  # by all that was learnt
        inside = np.flatnonzero(self._outside(self.latency) <= 0)
        best: dict[int, int] = {}
        for i in sorted(inside.tolist(), key=lambda i: -self.quality[i]):
            number = self._number(self.latency[i])
            if not self.trials.classes[number].trials:
                best.setdefault(number, i)
        return [(float(self.latency[i]), self.schedules[i]) for i in best.values()]
