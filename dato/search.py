"""The search: NSGA-II over a space of schedules, quality against latency.

Source: Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II" (2002), in pymoo's implementation;
DaTo searches cache depths and prune ratios with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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

from dato.front import Point
from dato.operators import EditMutation, Layout, SpliceCrossover
from dato.schedule import Schedule

OVERSAMPLE = 8  # offspring that an adviser chooses from, for each that is judged
WORST = 1e9  # stands for objectives and violated constraints of a candidate that failed


@dataclass(frozen=True)
class Preset:
    """Settings of one search.

    Attributes:
        steps: Steps of the sampler: the lengths to choose from.
        orders: Orders of forecasts to choose from.
        forecast: What orders above 0 mean (see `Schedule`).
        scheduler: The sampler, for the embedded model; None: the model's own.
        guidance_scale: Classifier-free guidance.
        images: Prompts, one image each.
        race: After so many images a candidate that is surely dominated gets no more; None: all get all.
        pop_size: Individuals of a generation; the first one takes in all seeds.
        generations: Generations, the initial population included.
        crossover: Probability and eta of simulated binary crossover, rounded; None: `SpliceCrossover`.
        mutation: Probability and eta of polynomial mutation, rounded; None: `EditMutation`.
        alphabet: Depths (besides the whole UNet) or ratios to choose from.
        from_uniform: Begin from uniform schedules and variations; else as the paper does.
        advised: Measure the sensitivity model, begin from its plans, and let it rank offspring.
    """

    steps: tuple[int, ...]
    orders: tuple[int, ...]
    forecast: str
    scheduler: str | None
    guidance_scale: float
    images: int
    race: int | None
    pop_size: int
    generations: int
    crossover: tuple[float, float] | None
    mutation: tuple[float, float] | None
    alphabet: tuple[float, ...]
    from_uniform: bool
    advised: bool


DEPTH_PRESETS = {
    "quick": Preset(
        steps=(8, 10, 12, 15, 18, 20, 22, 25, 30, 40, 50),
        orders=(0, 1),
        forecast="aligned",
        scheduler="dpm++2m",
        guidance_scale=3.0,
        images=8,
        race=2,
        pop_size=24,
        generations=3,
        crossover=None,
        mutation=None,
        alphabet=(0, 1, 2, 3),
        from_uniform=True,
        advised=True,
    ),
    "paper": Preset(
        steps=(50,),
        orders=(0,),
        forecast="polynomial",
        scheduler=None,
        guidance_scale=7.5,
        images=32,
        race=None,
        pop_size=15,
        generations=30,
        crossover=(0.8, 15),
        mutation=(0.8, 15),
        alphabet=(0, 1),
        from_uniform=False,
        advised=False,
    ),
}
# Of steps, orders and sampler a search of ratios takes those of the front.
RATIO_PRESETS = {
    "quick": replace(
        DEPTH_PRESETS["quick"], images=4, pop_size=16, generations=5, alphabet=(0, 0.3, 0.5, 0.7), advised=False
    ),
    "paper": replace(
        DEPTH_PRESETS["paper"],
        images=16,
        pop_size=25,
        generations=100,
        crossover=(0.7, 7),
        mutation=(0.4, 15),
        alphabet=(0.3, 0.4, 0.5, 0.6, 0.7),
    ),
}


class Space(Layout, Protocol):
    """What a search needs of a space (see `dato.space`)."""

    def decode(self, x: Sequence[int]) -> Schedule: ...
    def initial(self, count: int, rng: np.random.Generator, seeds: Sequence[Schedule]) -> np.ndarray: ...
    def papers_initial(self, count: int, rng: np.random.Generator) -> np.ndarray: ...


class Adviser(Protocol):
    """Who guesses what a schedule would be judged to be, without generating images."""

    def guess(self, schedule: Schedule) -> tuple[float, float]:
        """Quality and latency (milliseconds per image)."""
        ...

    def tell(self, points: Sequence[Point]) -> None:
        """All that was judged so far, to learn from."""
        ...


def first_generation(space: Space, preset: Preset, seed: int, seeds: Sequence[Schedule]) -> np.ndarray:
    """(n, genes) the vectors that a search begins with; with many seeds more than the population."""
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
    """Evolve schedules and yield each one's point as soon as it is judged; their non-dominated set is the front.

    Args:
        space: What to search.
        ask: Gives the points of a generation's schedules, in their order (`dato.study.Study`).
        preset: Population, generations, operators.
        seed: Fixes everything random in the search. The same seed and the same judgements give the same points.
        seeds: Schedules to begin from.
        min_quality: Schedules below this quality count as infeasible, as those that failed do.
        adviser: Ranks offspring: `OVERSAMPLE` times as many are made as the population has room for, and those that
            are promising by its guess, and new, are judged.
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
        if individuals is None:  # everything there is has been tried
            return
        if adviser is not None and judged:
            adviser.tell(judged)
            individuals = _promising(individuals, space, adviser, preset.pop_size, {p.schedule for p in judged})
        objectives, constraints = [], []
        for point in ask([space.decode(x) for x in individuals.get("X")]):
            judged.append(point)
            found, violation = _told(point, min_quality)
            objectives.append(found)
            constraints.append([violation])
            yield point
        known = {"F": np.array(objectives), "G": np.array(constraints)}
        PymooEvaluator().eval(StaticProblem(problem, **known), individuals)
        algorithm.tell(infills=individuals)


def _promising(
    individuals: Population, space: Space, adviser: Adviser, count: int, judged: Collection[Schedule]
) -> Population:
    """Of these, `count` that are new and, by the adviser's guess, non-dominated and spread along the front."""
    new = [i for i, x in enumerate(individuals.get("X")) if space.decode(x) not in judged]
    individuals = individuals[new or range(len(individuals))]
    guesses = [adviser.guess(space.decode(x)) for x in individuals.get("X")]
    guessed = Population.new(F=np.array([[-quality, latency] for quality, latency in guesses]))
    problem = Problem(n_var=1, n_obj=2)
    chosen = RankAndCrowding().do(problem, guessed, n_survive=min(count, len(guessed)), return_indices=True)
    return individuals[sorted(chosen)]


def _told(point: Point, min_quality: float | None) -> tuple[list[float], float]:
    """What the algorithm is told of a point: both objectives, to be minimised, and by how much it is infeasible."""
    if not (math.isfinite(point.quality) and math.isfinite(point.latency_ms)):
        return [WORST, WORST], WORST
    return [-point.quality, point.latency_ms], 0.0 if min_quality is None else min_quality - point.quality


def _rounded(operator: type, prob: float, eta: float) -> SBX | PM:
    """A real-number operator whose children are rounded to whole numbers, as in the authors' searches."""
    return operator(prob=prob, eta=eta, vtype=float, repair=RoundingRepair())
