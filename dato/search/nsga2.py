"""NSGA-II over a space of schedules. The two objectives are quality and latency.

Source: Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II" (2002), in pymoo's implementation;
DaTo searches cache depths and prune ratios with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.evaluator import Evaluator as PymooEvaluator
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.survival.rank_and_crowding import RankAndCrowding
from pymoo.problems.static import StaticProblem

from dato.point import Point
from dato.schedule import Schedule
from dato.search.operators import EditMutation, Layout, SpliceCrossover
from dato.search.presets import Preset

OVERSAMPLE = 8  # with an adviser, number of offspring made for each one that is judged
WORST = 1e9  # both objectives and the constraint's violation for a candidate that failed


class Space(Layout, Protocol):
    """What the search uses of a space (see `dato.search.spaces`)."""

    def decode(self, x: Sequence[int]) -> Schedule: ...
    def initial(self, count: int, rng: np.random.Generator, seeds: Sequence[Schedule]) -> np.ndarray: ...
    def papers_initial(self, count: int, rng: np.random.Generator) -> np.ndarray: ...


class Adviser(Protocol):
    """Guesses a schedule's quality and latency without generating images."""

    def guess(self, schedule: Schedule) -> tuple[float, float]:
        """Return quality and latency (milliseconds per image)."""
        ...

    def tell(self, points: Sequence[Point]) -> None:
        """Learn from all points that were judged so far."""
        ...


def first_generation(space: Space, preset: Preset, seed: int, seeds: Sequence[Schedule]) -> np.ndarray:
    """Return the (n, genes) vectors of the first generation. With many seeds n is above the population size."""
    rng = np.random.default_rng(seed)
    if preset.from_uniform:
        return space.initial(preset.pop_size, rng, seeds)
    return space.papers_initial(preset.pop_size, rng)


def search(
    space: Space,
    ask: Callable[[Sequence[Schedule]], Iterable[Point]],
    preset: Preset,
    *,
    seed: int = 0,
    seeds: Sequence[Schedule] = (),
    min_quality: float | None = None,
    adviser: Adviser | None = None,
) -> Iterator[Point]:
    """Evolve schedules, and yield each one's point as soon as it is judged. The non-dominated points are the front.

    Args:
        space: The schedules to choose from.
        ask: Returns the points of a generation's schedules, in their order (as `dato.search.study.Study` does).
        preset: Population, generations, operators.
        seed: Fixes everything random in the search. The same seed and the same judgements give the same points.
        seeds: Schedules to begin from.
        min_quality: Schedules below this quality are infeasible, and so are those that failed.
        adviser: Ranks offspring. `OVERSAMPLE` times as many are made as the population holds. The most promising new
            ones are judged.
    """
    initial = first_generation(space, preset, seed, seeds)
    problem = Problem(
        n_var=len(space.upper),
        n_obj=2,
        n_ieq_constr=1,
        xl=np.zeros(len(space.upper)),
        xu=space.upper,
        vtype=int,
    )
    algorithm = NSGA2(
        pop_size=preset.pop_size,
        sampling=initial,
        crossover=SpliceCrossover(space) if preset.crossover is None else _rounded(SBX, *preset.crossover),
        mutation=EditMutation(space) if preset.mutation is None else _rounded(PM, *preset.mutation),
        eliminate_duplicates=True,
        n_offsprings=preset.pop_size * (1 if adviser is None else OVERSAMPLE),
    )
    algorithm.setup(problem, termination=("n_gen", preset.generations), seed=seed, verbose=False)
    judged: list[Point] = []
    while algorithm.has_next():
        individuals = algorithm.ask()
        if individuals is None:  # the whole space has been tried
            return
        if adviser is not None and judged:
            adviser.tell(judged)
            individuals = _promising(individuals, space, adviser, preset.pop_size, {p.schedule for p in judged})
        objectives, constraints = [], []
        for point in ask([space.decode(x) for x in individuals.get("X")]):
            judged.append(point)
            costs, violation = _told(point, min_quality)
            objectives.append(costs)
            constraints.append([violation])
            yield point
        values = {"F": np.array(objectives), "G": np.array(constraints)}
        PymooEvaluator().eval(StaticProblem(problem, **values), individuals)
        algorithm.tell(infills=individuals)


def _promising(
    individuals: Population, space: Space, adviser: Adviser, count: int, judged: Collection[Schedule]
) -> Population:
    """Return `count` individuals that are new and rank best by the adviser's guesses (non-dominated, then crowding)."""
    new = [i for i, x in enumerate(individuals.get("X")) if space.decode(x) not in judged]
    individuals = individuals[new or range(len(individuals))]
    guesses = [adviser.guess(space.decode(x)) for x in individuals.get("X")]
    guessed = Population.new(F=np.array([[-quality, latency] for quality, latency in guesses]))
    problem = Problem(n_var=1, n_obj=2)
    chosen = RankAndCrowding().do(problem, guessed, n_survive=min(count, len(guessed)), return_indices=True)
    return individuals[sorted(chosen)]


def _told(point: Point, min_quality: float | None) -> tuple[list[float], float]:
    """Return both objectives of a point, to be minimised, and by how much it violates the constraint."""
    if not (math.isfinite(point.quality) and math.isfinite(point.latency_ms)):
        return [WORST, WORST], WORST
    return [-point.quality, point.latency_ms], 0.0 if min_quality is None else min_quality - point.quality


def _rounded(operator: type, prob: float, eta: float) -> SBX | PM:
    """Return an operator for real numbers whose children are rounded, as in the authors' searches."""
    return operator(prob=prob, eta=eta, vtype=float, repair=RoundingRepair())
