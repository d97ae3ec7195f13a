"""Measure a latency table by generations in which every kind of call occurs several times, in random order.

The time of a call depends on the calls before it, because of what they leave in processor caches and in the memory
pool. So calls are timed among other calls, as in real schedules, and not one kind after the other. A short stock
generation goes before each such *probe*, because speed-ups are right only if the machine was equally fast for stock and
patched calls.
"""

from __future__ import annotations

import random
import statistics
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

from diffusers import DiffusionPipeline
from scipy.stats import ttest_ind

from dato.errors import DatoError
from dato.forecast_rule import POLYNOMIAL
from dato.generation.sampling import Sampling, generate
from dato.prediction.latency_table import CallKind, LatencyTable, call_kinds
from dato.pruning import Pruning
from dato.samplers import lengths
from dato.schedule import Schedule
from dato.unet.compiled import CompiledCalls
from dato.unet.ladder import Ladder
from dato.unet.patch import patched, remove_patch
from dato.utils.timing import forward_times

CALLS = 56  # of a probe, at most
BEGIN = 4  # whole calls at the start: three values to forecast from, also with PLMS, which computes one of them twice
SURELY = 0.05  # probability of so great a difference by chance, below which stock's and patched whole calls differ
SHORT = 5  # calls of a stock generation; their number has to differ from the probes'


def measure_table(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    sampling: Sampling,
    schedules: Iterable[Schedule],
    *,
    rounds: int = 3,
    seed: int = 0,
    progress: Callable[[float, int], None] = lambda done, total: None,
    compiled: CompiledCalls | None = None,
) -> LatencyTable:
    """Measure the time of each kind of call that these schedules consist of.

    The table also predicts other schedules of such calls, of any length. Any patch on the pipeline is removed.

    Args:
        pipe: The pipeline, on its device, with its sampler.
        prompts: The first batch of them is generated.
        sampling: How to generate; the number of steps does not matter.
        schedules: The schedules whose calls are measured. Those that prune must have the same settings.
        rounds: How often each probe runs, with another order of calls each time. One short probe before them warms up.
        seed: Fixes the order of calls.
        progress: Is called after each generation with the numbers of rounds that are done and that there are.
        compiled: Compiled calls to run the probes with, and stock; None: eager ones.

    Raises:
        DatoError: if the settings of pruning differ, or a schedule does not fit the UNet.
    """
    remove_patch(pipe)
    rungs, batch = len(Ladder(pipe.unet)), list(prompts[: sampling.batch_size])
    schedules = [schedule.for_rungs(rungs) for schedule in schedules]
    pruning = _settings(schedules)
    kinds = {kind for schedule in schedules for kind in call_kinds(schedule)}
    steps_of = lengths(pipe, CALLS)
    repeats = min(4, max(2, 48 // max(1, len(kinds))))  # with many kinds, the error of each weighs less in a sum
    rng = random.Random(seed)

    generations = []
    for round_ in range(rounds + 1):
        drawn = probes(kinds, rungs, pruning, max(steps_of), rng, repeats if round_ else 1)
        rng.shuffle(drawn)
        # Warming up takes one probe, or all if each has calls that are compiled first.
        drawn = drawn[: None if round_ or compiled is not None else 1]
        turns = [turn for probe in drawn for turn in (None, probe)]  # None: stock
        for number, probe in enumerate(turns):
            generation = _timed(pipe, batch, sampling, steps_of, probe, compiled)
            progress(round_ + (number + 1) / len(turns), rounds + 1)
            if round_:  # the first round warms up
                generations.append(generation)
    calls, outside = _summed_up(rungs, generations)
    stock = calls.pop(None)
    ordered = {kind: calls[kind] for kind in sorted(calls, key=_in_order)}
    return LatencyTable(rungs, ordered, stock, *fixed_parts(outside), pruning)


class _Generation(NamedTuple):
    """One generation that was timed; all times are milliseconds per image.

    Attributes:
        kinds: The kind of each call; None is a call of stock.
        times: The time of each call.
        whole: The time of the whole generation.
    """

    kinds: Sequence[CallKind | None]
    times: Sequence[float]
    whole: float


def _settings(schedules: Sequence[Schedule]) -> Pruning:
    """Return the settings that all these schedules prune with."""
    settings = {schedule.pruning for schedule in schedules if any(schedule.ratios)} or {Pruning()}
    if len(settings) > 1:
        raise DatoError("latency table: its schedules prune with different settings; measure a table for each")
    if any(pruning.choose_every > 1 for pruning in settings):
        raise DatoError("latency table: with choose_every above 1 a call does not take the same time everywhere")
    return settings.pop()


def _timed(
    pipe: DiffusionPipeline,
    batch: list[str],
    sampling: Sampling,
    steps_of: Mapping[int, int],
    probe: Schedule | None,
    compiled: CompiledCalls | None,
) -> _Generation:
    """Run and time a probe, or stock, in a number of calls that the sampler makes (`steps_of`: calls -> steps)."""
    wanted = SHORT if probe is None else len(probe)
    calls = next((n for n in steps_of if n >= wanted), max(steps_of))
    probe = None if probe is None else _padded(probe, calls)
    schedule = Schedule.full(calls, rungs=len(Ladder(pipe.unet))) if probe is None and compiled is not None else probe
    running = nullcontext() if schedule is None else patched(pipe, schedule, compile=compiled or False)
    with running, forward_times(pipe.unet) as watch:
        result = generate(pipe, batch, replace(sampling, steps=steps_of[calls]))
        times = [ms / len(batch) for ms in watch.read()]
    return _Generation([None] * calls if probe is None else call_kinds(probe), times, result.latency_ms[0])


def _summed_up(
    rungs: int, generations: Sequence[_Generation]
) -> tuple[dict[CallKind | None, float], list[tuple[int, float]]]:
    """Return the time of each kind of call, and (calls, time outside the UNet) of each generation."""
    samples: defaultdict[CallKind | None, list[float]] = defaultdict(list)
    for kinds, times, _ in generations:
        for kind, ms in zip(kinds[1:], times[1:], strict=True):
            samples[kind].append(ms)
    calls = {kind: typical(times) for kind, times in samples.items()}
    calls |= _equal_whole_calls(CallKind(rungs), generations, samples)
    # The first call of a generation takes longer than others of its kind. The difference counts as the image's.
    outside = [(len(kinds), whole - sum(times[1:]) - calls[kinds[0]]) for kinds, times, whole in generations]
    return calls, outside


def _equal_whole_calls(
    whole: CallKind, generations: Sequence[_Generation], samples: Mapping[CallKind | None, Sequence[float]]
) -> dict[CallKind | None, float]:
    """Return one time for stock's calls and the patched whole calls, unless they surely differ.

    Both compute the same. On a machine that is not equally fast for two generations they differ by chance, and all
    speed-ups with them. Generations are compared by Welch's test, because calls of one generation are delayed together.
    """
    if whole not in samples:
        return {}
    means = [
        [
            statistics.mean(ms for kind, ms in zip(g.kinds[1:], g.times[1:], strict=True) if kind == wanted)
            for g in generations
            if wanted in g.kinds[1:]
        ]
        for wanted in (None, whole)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of means that do not vary
        if min(map(len, means)) > 1 and ttest_ind(*means, equal_var=False).pvalue < SURELY:
            return {}
    return dict.fromkeys((None, whole), typical([*samples[None], *samples[whole]]))


def typical(times: Sequence[float]) -> float:
    """Return the mean without the highest and the lowest tenth.

    A schedule's time is a sum of calls, some of which are delayed, so a sum of medians would be too low.
    """
    cut = min(-(-len(times) // 10), (len(times) - 1) // 2)
    return statistics.mean(sorted(times)[cut : len(times) - cut])


def probes(
    kinds: Collection[CallKind], rungs: int, pruning: Pruning, longest: int, rng: random.Random, repeats: int
) -> list[Schedule]:
    """Return schedules in which each of these kinds occurs `repeats` times, in random order.

    One schedule has one rule of forecasting, and either prunes or does not. So kinds of different rules come in
    different schedules, and so do kinds with and without ratios. Whole calls are in all of them.

    Args:
        kinds: The kinds.
        rungs: The number of rungs of the UNet.
        pruning: The settings of pruning.
        longest: The greatest number of calls of a schedule.
        rng: The source of randomness.
        repeats: How often each kind occurs.
    """
    groups: defaultdict[tuple[str, bool], list[CallKind]] = defaultdict(list)
    for kind in sorted(set(kinds) - {CallKind(rungs), CallKind(rungs, 0.0)}, key=_in_order):
        groups[kind.forecast, kind.ratio is not None].append(kind)
    schedules = []
    for (forecast, pruned), group in (groups or {(POLYNOMIAL.name, False): []}).items():
        whole = CallKind(rungs, 0.0 if pruned else None)
        bag = [*group, whole] * repeats
        rng.shuffle(bag)
        parts = -(-len(bag) // max(1, longest - BEGIN))
        for part in range(parts):
            depths, ratios, orders, _ = zip(*[whole] * BEGIN, *bag[part::parts], strict=True)
            ratios = [ratio or 0.0 for ratio in ratios]
            schedules.append(Schedule(depths, ratios, orders, rungs, pruning, forecast))
    return schedules


def fixed_parts(outside: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Return the milliseconds outside the UNet for each call and for each image.

    They come from generations of different lengths: the median slope between two of them, and the median of what is
    left (Theil and Sen). Neither is below 0.

    Args:
        outside: (calls, milliseconds outside the UNet) of each generation.
    """
    slopes = [(b - a) / (n - m) for (m, a), (n, b) in combinations(outside, 2) if m != n]
    per_call = max(0.0, statistics.median(slopes)) if slopes else 0.0
    per_image = statistics.median(ms - per_call * calls for calls, ms in outside)
    if per_image < 0:
        return max(0.0, statistics.median(ms / calls for calls, ms in outside)), 0.0
    return per_call, per_image


def _in_order(kind: CallKind) -> tuple:
    """Return a key to sort by, because None and numbers cannot be compared."""
    return kind.forecast, kind.ratio is not None, kind


def _padded(schedule: Schedule, calls: int) -> Schedule:
    """Return the schedule lengthened to `calls` calls, with whole calls at its end."""
    more = calls - len(schedule)
    return replace(
        schedule,
        depths=schedule.depths + (schedule.rungs,) * more,
        ratios=schedule.ratios + (0.0,) * more,
        orders=schedule.orders + (0,) * more,
    )
