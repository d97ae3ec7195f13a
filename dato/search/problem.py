"""What a search has to solve: the space it chooses from, where it begins, and what it has to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dato.errors import DatoError
from dato.evaluation.baselines import all_baselines, seeds
from dato.evaluation.pool import Facts
from dato.point import Point
from dato.pruning import Pruning
from dato.schedule import Schedule
from dato.search.nsga2 import Space
from dato.search.presets import Preset
from dato.search.spaces import PAPERS_WHOLE_CALLS, DepthSpace, RatioSpace
from dato.search.warm_start import WarmStart, digest


@dataclass(frozen=True)
class SearchProblem:
    """What is searched.

    Attributes:
        space: The schedules to choose from.
        references: Named schedules that compete too.
        seeds: Schedules to begin from.
        pruning: The settings of token pruning that belong to the ratios.
        settings: What a front's conditions record of the space.
        warm_start: The front to begin from. Its schedules are judged first.
    """

    space: Space
    references: Mapping[str, Schedule]
    seeds: Sequence[Schedule]
    pruning: Pruning
    settings: Mapping[str, Any]
    warm_start: WarmStart = field(default_factory=WarmStart)


def call_problem(
    facts: Facts, preset: Preset, name: str, pruning: Pruning | None, warm_start: WarmStart
) -> SearchProblem:
    """Return the problem of a search of depths.

    Args:
        facts: Of the pipeline.
        preset: Settings of the search.
        name: The preset's name.
        pruning: Settings of the ratios that are searched together with the depths; None: depths alone are searched.
        warm_start: A front to begin from, if there is one.

    Raises:
        DatoError: if there is nothing to choose, the preset cannot predict the forecast, or the space holds no schedule
            of the front.
    """
    lengths = [facts.calls_of[steps] for steps in preset.steps]
    ratios = [0.0] if pruning is None else preset.ratios
    meant = pruning or Pruning()
    kinds = preset.depths, preset.orders, preset.forecast
    space = DepthSpace(lengths, facts.rungs, *kinds, ratios, meant, preset.order_by_call)
    if preset.minutes is not None and not space.can_be_planned:
        raise DatoError(
            f"`forecast` {preset.forecast} reads all of the past, which {name} cannot predict: give `preset` quick, or "
            "`orders` 0"
        )
    regular = seeds(lengths, facts.rungs, preset.orders, preset.forecast, preset.pop_size // len(space.seed_ratios))
    settings = {
        "preset": name,
        "depths": space.depths,
        **({} if pruning is None else {"ratios": space.ratios}),
        "orders": list(preset.orders),
        "forecast": preset.forecast,
        "steps": list(preset.steps),
        **({} if preset.from_uniform else {"initial_whole_calls": list(PAPERS_WHOLE_CALLS)}),
        **warm_start.settings,
    }
    rivals = _with_pruning(all_baselines(facts.steps_of, facts.calls, facts.rungs), meant)
    return SearchProblem(space, rivals, space.also_pruned(regular), meant, settings, warm_start.inside(space))


@dataclass(frozen=True)
class Bases:
    """The schedules that prune ratios are searched on top of.

    Attributes:
        points: The points of a front.
        rungs: Rungs of the UNet that they are for.
        reference: Steps of the front's reference.
        source: The front's file or name, for messages and conditions.
        pick: How one of its points was picked, for example "knee"; None: all of them are there.
    """

    points: Sequence[Point]
    rungs: int
    reference: int
    source: str
    pick: str | None = None

    def steps(self, point: Point) -> int:
        """Return the number of steps that a point is for."""
        return point.steps or self.reference

    def space(self, ratios: Sequence[float], pruning: Pruning) -> RatioSpace:
        """Return the space of ratios on top of these. Raise DatoError if there is nothing to choose."""
        return RatioSpace([point.schedule for point in self.points], ratios, pruning)

    def check(self, facts: Facts) -> None:
        """Raise DatoError if a pipeline makes another number of calls, or has another number of rungs."""
        for point in self.points:
            if facts.steps_of.get(len(point.schedule)) != self.steps(point) or facts.rungs != self.rungs:
                raise DatoError(
                    f"{self.source} has a schedule of {len(point.schedule)} calls and {self.rungs} rungs for "
                    f"{self.steps(point)} steps, and this model makes {sorted(facts.steps_of)} calls and has "
                    f"{facts.rungs} rungs; search its depths first"
                )


def ratio_problem(facts: Facts, bases: Bases, space: RatioSpace, name: str, pruning: Pruning) -> SearchProblem:
    """Return the problem of a search of ratios.

    Args:
        facts: Of the pipeline.
        bases: What to build on.
        space: Made of them.
        name: The preset's name.
        pruning: Settings of token pruning that belong to the ratios.

    Raises:
        DatoError: if the schedules are for another pipeline.
    """
    bases.check(facts)
    rivals = all_baselines(facts.steps_of, facts.calls, facts.rungs)
    most = space.ratios[-1]
    rivals[f"all whole, ratio {most:g}"] = Schedule.full(facts.calls, rungs=bases.rungs).with_ratios(most)
    settings = {
        "preset": name,
        "ratios": space.ratios,
        "depths": bases.source,
        "depths_sha256": digest([point.schedule for point in bases.points]),
        "pick": bases.pick,
    }
    return SearchProblem(space, _with_pruning(rivals, pruning), [], pruning, settings)


def _with_pruning(schedules: Mapping[str, Schedule], pruning: Pruning) -> dict[str, Schedule]:
    """Return the schedules with these settings of pruning, as all schedules of one front need the same."""
    return {name: replace(schedule, pruning=pruning) for name, schedule in schedules.items()}
