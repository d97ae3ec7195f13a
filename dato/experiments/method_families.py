"""Methods to compare, as named families: what the papers compare, and points of fronts.

To add a family, write a function from `Facts` to a list of `Method`s and enter it in `FAMILIES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from dato.errors import DatoError
from dato.evaluation import baselines
from dato.evaluation.methods import Method, named_methods, schedule_method, tomesd_method
from dato.evaluation.rules import whole_calls
from dato.experiments import sito_ablations
from dato.front import Front
from dato.point import Point
from dato.pruning import PAPER_RATIOS, SITO_PRUNING
from dato.schedule import Schedule
from dato.strategies import load_strategy

if TYPE_CHECKING:
    from dato.evaluation.pool import Facts

Families = dict[str, list[Method]]  # title -> methods
DEFAULT_FAMILIES = ("steps", "deepcache", "sito", "spectrum")  # and tomesd, if it is installed
RULE_INTERVALS = (2, 3, 5)
GROWING = 10  # whole calls of rules, from which on growing distances are judged too
EARLY = 0.4  # of all calls whole, up to which rules are judged too that do not end with a whole call
FEWEST_WHOLE = 4  # of rules; fewer only if four are more than half of all calls
SHARES = ((2, 1.0), (3, 1.0), (2, 0.5), (3, 0.5), (2, 0.3), (2, 0.2), (2, 0.16))  # (interval, share of the steps)


def fewer_steps(facts: Facts) -> list[Method]:
    """Return stock with fewer steps."""
    return named_methods(baselines.stock(facts.steps_of, facts.calls, facts.rungs))


def deepcache(facts: Facts) -> list[Method]:
    """Return uniform schedules, DeepCache's (Ma et al., CVPR 2024)."""
    uniform = baselines.uniform(facts.calls, facts.rungs)
    return named_methods({f"DeepCache {name}": schedule for name, schedule in uniform.items()})


def dato_vector(facts: Facts) -> list[Method]:
    """Return the vector in the DaTo authors' code."""
    return named_methods(
        {"DaTo's vector": load_strategy("dato-published").resampled(facts.calls).for_rungs(facts.rungs)}
    )


def sito(facts: Facts) -> list[Method]:
    """Return SiTo a to e (table 1): every call whole and pruned, each block with its own choice of tokens."""
    whole = replace(Schedule.full(facts.calls, rungs=facts.rungs), pruning=SITO_PRUNING)
    return named_methods(
        {f"SiTo-{letter} {ratio:.0%}": whole.with_ratios(ratio) for letter, ratio in PAPER_RATIOS.items()}
    )


def tomesd(facts: Facts) -> list[Method]:
    """Return ToMeSD at SiTo's ratios, run by its package. Raise DatoError if that is not installed."""
    whole = Schedule.full(facts.calls, rungs=facts.rungs)
    methods = []
    for letter, ratio in PAPER_RATIOS.items():
        method = tomesd_method(ratio, whole)
        if method is None:
            raise DatoError("the method tomesd needs its package: pip install tomesd")
        methods.append(replace(method, name=f"ToMeSD-{letter} {ratio:.0%}"))
    return methods


def spectrum(facts: Facts) -> list[Method]:
    """Return Spectrum (Han et al., CVPR 2026)."""
    return named_methods(baselines.spectrum(facts.calls, facts.rungs))


def regular(facts: Facts, order: int, forecast: str = "polynomial") -> list[Method]:
    """Return regular schedules of ours: fewer steps and shallow calls together, with one order of forecast."""
    kind = forecast if forecast == "aligned" else f"order {order}"
    methods = []
    for interval, share in SHARES:
        steps = max(2, round(share * facts.steps_of[facts.calls]))
        if steps not in facts.calls_of:
            continue  # the reference is too short for this share
        schedule = Schedule.uniform(facts.calls_of[steps], interval, 1, order, rungs=facts.rungs, forecast=forecast)
        methods.append(schedule_method(schedule, f"{kind}: {steps} steps, N={interval} d=1"))
    return methods


def rules(facts: Facts) -> list[Method]:
    """Return schedules that need no search, with forecasts of order 1.

    "rule: 10 of 50 whole": so many calls whole, spread evenly, the others at depth 0. "growing": the distances grow,
    and the last two calls are whole. "ending early": the distances grow, and the last call is not whole. "rule: every
    3rd of 50 whole": the others at depth 1. They are some of `dato.evaluation.rules.rules`.
    """
    calls, rungs = facts.calls, facts.rungs
    schedules = {
        f"rule: {whole} of {calls} whole": Schedule.spread(calls, whole, 0, 1, rungs=rungs)
        for whole in whole_calls(calls, fewest=max(2, min(FEWEST_WHOLE, calls // 2)))
    }
    schedules |= {
        f"rule: {whole} of {calls} whole, growing": Schedule.spread(
            calls, whole, 0, 1, cooldown=2, growth=1.25, rungs=rungs
        )
        for whole in whole_calls(calls, fewest=3)
        if whole >= GROWING
    }
    schedules |= {
        f"rule: {whole} of {calls} whole, ending early": Schedule.spread(
            calls, whole, 0, 1, growth=1.25, tail=1, rungs=rungs
        )
        for whole in whole_calls(calls, fewest=3)
        if whole <= calls * EARLY
    }
    for interval in RULE_INTERVALS:
        if interval < calls and rungs > 1:
            ordinal = {2: "2nd", 3: "3rd"}.get(interval, f"{interval}th")
            schedules[f"rule: every {ordinal} of {calls} whole"] = Schedule.uniform(calls, interval, 1, 1, rungs=rungs)
    return named_methods(schedules)


# Name on the command line -> (title, function that lists the methods).
FAMILIES: dict[str, tuple[str, Callable[[Facts], list[Method]]]] = {
    "steps": ("fewer steps", fewer_steps),
    "deepcache": ("DeepCache", deepcache),
    "dato": ("DaTo's vector", dato_vector),
    "sito": ("SiTo", sito),
    "tomesd": ("ToMeSD", tomesd),
    "spectrum": ("Spectrum", spectrum),
    "rules": ("rules", rules),
    "order0": ("ours, regular, order 0", lambda facts: regular(facts, 0)),
    "order1": ("ours, regular, order 1", lambda facts: regular(facts, 1)),
    "aligned": ("ours, regular, aligned", lambda facts: regular(facts, 1, "aligned")),
    "order2": ("ours, regular, order 2", lambda facts: regular(facts, 2)),
} | {name: (name, ablation) for name, ablation in sito_ablations.ABLATIONS.items()}


def check_families(names: Sequence[str]) -> None:
    """Raise DatoError if a name is not in `FAMILIES`, or the package it needs is not installed."""
    for name in names:
        if name not in FAMILIES:
            raise DatoError(f"unknown method {name!r}; known are {', '.join(FAMILIES)}")
        if name == "tomesd" and not has_tomesd():
            raise DatoError("the method tomesd needs its package: pip install tomesd")


def has_tomesd() -> bool:
    """Return whether the package ToMeSD is installed."""
    return find_spec("tomesd") is not None


def families_of(names: Sequence[str], facts: Facts) -> Families:
    """Return the families of these names, with their titles as keys."""
    return {title: list_methods(facts) for title, list_methods in (FAMILIES[name] for name in names)}


def steps_of_point(point: Point, front: Front, reference: int) -> int:
    """Return a point's number of steps if the reference has `reference` steps, in the proportion of its search."""
    searched = front.conditions.get("steps", len(point.schedule))
    return max(1, round((point.steps or searched) * reference / searched))


def of_front(front: Front, label: str, facts: Facts, points: Mapping[int, Point]) -> list[Method]:
    """Return points of a front as methods. A point whose steps make another number of calls here is resampled.

    Args:
        front: The front.
        label: What names of its methods begin with.
        facts: The facts of the pipeline.
        points: Number on the front -> point.
    """
    reference = facts.steps_of[facts.calls]
    return [
        fitted(f"{label} {number}", point.schedule, facts.calls_of[steps_of_point(point, front, reference)], facts)
        for number, point in points.items()
    ]


def of_schedule(schedule: Schedule, label: str, facts: Facts) -> Method:
    """Return a schedule as a method. It is resampled if no generation has this number of calls."""
    return fitted(label, schedule, len(schedule) if len(schedule) in facts.steps_of else facts.calls, facts)


def fitted(name: str, schedule: Schedule, calls: int, facts: Facts) -> Method:
    """Return a schedule as a method of `calls` calls of this UNet. Its name says if it was resampled."""
    if calls != len(schedule):
        name, schedule = f"{name} ({len(schedule)} calls resampled)", schedule.resampled(calls)
    return schedule_method(schedule.for_rungs(facts.rungs), name)


def thinned(front: Front, most: int | None) -> dict[int, Point]:
    """Return at most `most` points of a front, by number, spread evenly over the logarithm of the speed-up."""
    numbered = dict(enumerate(front.points))
    if most is None or len(front) <= most:
        return numbered
    speeds = {number: math.log(point.speedup) for number, point in numbered.items()}
    low, high = min(speeds.values()), max(speeds.values())
    wanted = [low + (high - low) * i / (most - 1) for i in range(most)]
    kept = {min(speeds, key=lambda number: abs(speeds[number] - speed)) for speed in wanted}
    return {number: numbered[number] for number in sorted(kept)}
