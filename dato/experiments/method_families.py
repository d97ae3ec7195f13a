"""Methods to set side by side, as families of named contenders: what the papers compare, and fronts of ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec

from dato.errors import DatoError
from dato.evaluation import baselines as references
from dato.evaluation.methods import Peer, tomesd_peer
from dato.evaluation.pool import Facts
from dato.experiments import sito_ablations as ablations
from dato.front import Front
from dato.point import Point
from dato.pruning import PAPER_PRUNING, PAPER_RATIOS
from dato.schedule import Schedule
from dato.strategies import load_strategy

Contender = Schedule | Peer
Families = dict[str, dict[str, Contender]]
SHARES = ((2, 1.0), (3, 1.0), (2, 0.5), (3, 0.5), (2, 0.3), (2, 0.2), (2, 0.16))  # (interval, share of the steps)


def fewer_steps(facts: Facts) -> dict[str, Contender]:
    """Stock with fewer steps."""
    return dict(references.stock(facts.steps_of, facts.calls, facts.rungs))


def deepcache(facts: Facts) -> dict[str, Contender]:
    """Uniform schedules, DeepCache's (Ma et al., CVPR 2024)."""
    return {f"DeepCache {name}": s for name, s in references.uniform(facts.calls, facts.rungs).items()}


def dato_vector(facts: Facts) -> dict[str, Contender]:
    """The vector in the DaTo authors' code."""
    return {"DaTo's vector": load_strategy("dato-published").resampled(facts.calls).for_rungs(facts.rungs)}


def sito(facts: Facts) -> dict[str, Contender]:
    """SiTo a to e (table 1): every call whole and pruned, every block with its own choice of tokens."""
    whole = replace(Schedule.full(facts.calls, rungs=facts.rungs), pruning=PAPER_PRUNING)
    return {f"SiTo-{letter} {ratio:.0%}": whole.with_ratios(ratio) for letter, ratio in PAPER_RATIOS.items()}


def tomesd(facts: Facts) -> dict[str, Contender]:
    """ToMeSD at the same ratios, by its package."""
    whole = Schedule.full(facts.calls, rungs=facts.rungs)
    peers = {letter: tomesd_peer(ratio, whole) for letter, ratio in PAPER_RATIOS.items()}
    return {f"ToMeSD-{letter} {PAPER_RATIOS[letter]:.0%}": peer for letter, peer in peers.items()}


def spectrum(facts: Facts) -> dict[str, Contender]:
    """Spectrum (Han et al., CVPR 2026)."""
    return dict(references.spectrum(facts.calls, facts.rungs))


def regular(facts: Facts, order: int, forecast: str = "polynomial") -> dict[str, Contender]:
    """Regular schedules of ours: fewer steps and shallow calls together, with one order of forecast."""
    kind = forecast if forecast == "aligned" else f"order {order}"
    found: dict[str, Contender] = {}
    for interval, share in SHARES:
        steps = max(2, round(share * facts.steps_of[facts.calls]))
        if steps not in facts.calls_of:
            continue  # of a short reference
        schedule = Schedule.uniform(facts.calls_of[steps], interval, 1, order, rungs=facts.rungs, forecast=forecast)
        found[f"{kind}: {steps} steps, N={interval} d=1"] = schedule
    return found


METHODS: dict[str, tuple[str, Callable[[Facts], dict[str, Contender]]]] = {
    "steps": ("fewer steps", fewer_steps),
    "deepcache": ("DeepCache", deepcache),
    "dato": ("DaTo's vector", dato_vector),
    "sito": ("SiTo", sito),
    "tomesd": ("ToMeSD", tomesd),
    "spectrum": ("Spectrum", spectrum),
    "order0": ("ours, regular, order 0", lambda facts: regular(facts, 0)),
    "order1": ("ours, regular, order 1", lambda facts: regular(facts, 1)),
    "aligned": ("ours, regular, aligned", lambda facts: regular(facts, 1, "aligned")),
    "order2": ("ours, regular, order 2", lambda facts: regular(facts, 2)),
} | {name: (name, make) for name, make in ablations.ABLATIONS.items()}


def known_methods(chosen: Sequence[str]) -> list[str]:
    """These names. Raises DatoError for an unknown one, or one whose package is not installed."""
    for name in chosen:
        if name not in METHODS:
            raise DatoError(f"--methods: unknown method {name!r}; known are {', '.join(METHODS)}")
        if name == "tomesd" and not has_tomesd():
            raise DatoError("--methods tomesd: the package is not installed: pip install tomesd")
    return list(chosen)


def has_tomesd() -> bool:
    """Whether the package ToMeSD is installed."""
    return find_spec("tomesd") is not None


def methods(chosen: Sequence[str], facts: Facts) -> Families:
    """The methods of these names, {family: {row: contender}}."""
    return {METHODS[name][0]: METHODS[name][1](facts) for name in chosen}


def own_steps(point: Point, front: Front, reference: int) -> int:
    """A point's number of steps where the reference has `reference` of them, in the proportion of its search."""
    known = front.conditions.get("steps", len(point.schedule))
    return max(1, round((point.steps or known) * reference / known))


def of_front(front: Front, label: str, facts: Facts, points: Mapping[int, Point]) -> dict[str, Contender]:
    """Points of a front by their numbers; one whose steps make another number of calls here is resampled."""
    found: dict[str, Contender] = {}
    for number, point in points.items():
        steps = own_steps(point, front, facts.steps_of[facts.calls])
        found |= fitted(f"{label} {number}", point.schedule, facts.calls_of[steps], facts)
    return found


def of_schedule(schedule: Schedule, label: str, facts: Facts) -> dict[str, Contender]:
    """One schedule, resampled if there is no generation of so many calls."""
    return fitted(label, schedule, len(schedule) if len(schedule) in facts.steps_of else facts.calls, facts)


def fitted(title: str, schedule: Schedule, calls: int, facts: Facts) -> dict[str, Contender]:
    """A schedule for so many calls of this UNet, and a title that says if it was resampled."""
    if calls != len(schedule):
        title, schedule = f"{title} ({len(schedule)} calls resampled)", schedule.resampled(calls)
    return {title: schedule.for_rungs(facts.rungs)}


def thinned(front: Front, most: int | None) -> dict[int, Point]:
    """At most so many points of a front by number: those nearest to even steps of the speed-up's logarithm."""
    numbered = dict(enumerate(front.points))
    if most is None or len(front) <= most:
        return numbered
    speeds = {number: math.log(point.speedup) for number, point in numbered.items()}
    low, high = min(speeds.values()), max(speeds.values())
    wanted = [low + (high - low) * i / (most - 1) for i in range(most)]
    kept = {min(speeds, key=lambda number: abs(speeds[number] - speed)) for speed in wanted}
    return {number: numbered[number] for number in sorted(kept)}
