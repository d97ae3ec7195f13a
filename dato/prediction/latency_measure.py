"""Measuring a latency table: generations in which every kind of call occurs several times, in random order.

What a call takes depends on its neighbours, by what they leave in processor caches and in the memory pool; so calls
are timed among others, as in real schedules, and not one kind after the other. A short stock generation goes before
each probe: speed-ups hang most on stock and patched calls being of one time of the machine.
"""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import combinations

from diffusers import DiffusionPipeline

from dato.errors import DatoError
from dato.generation.sampling import Sampling, generate
from dato.prediction.latency_table import CallKind, LatencyTable, call_kinds
from dato.pruning import Pruning
from dato.samplers import lengths
from dato.schedule import Schedule
from dato.unet.ladder import Ladder
from dato.unet.patch import patched, remove_patch
from dato.utils.timing import forward_times

CALLS = 56  # of a probe, at most
BEGIN = 4  # whole calls first: three values to forecast from, where PLMS computes one of them twice
SHORT = 5  # calls of a stock generation, whose length has to differ from the probes'


def measure_table(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    sampling: Sampling,
    schedules: Iterable[Schedule],
    *,
    rounds: int = 3,
    seed: int = 0,
    progress: Callable[[float, int], None] = lambda done, total: None,
) -> LatencyTable:
    """Measure what each kind of call takes that these schedules consist of.

    The table predicts every other schedule of such calls, too, of any length. A patch on the pipeline is taken off.

    Args:
        pipe: The pipeline, on its device, with its sampler.
        prompts: The first batch of them is generated.
        sampling: How; steps do not matter.
        schedules: What the table has to know the calls of. Those that prune must do so with the same settings.
        rounds: Each probe runs so often, in turn, in another order of calls each time. A short round before them
            warms up.
        seed: Fixes the order of calls.
        progress: Called after each generation with how many rounds are done and how many there are.

    Raises:
        DatoError: if the settings of pruning differ, or a schedule does not fit the UNet.
    """
    remove_patch(pipe)
    rungs, batch = len(Ladder(pipe.unet)), list(prompts[: sampling.batch_size])
    schedules = [schedule.for_rungs(rungs) for schedule in schedules]
    settings = {schedule.pruning for schedule in schedules if any(schedule.ratios)} or {Pruning()}
    if len(settings) > 1:
        raise DatoError("latency table: its schedules prune with different settings; measure a table for each")
    if any(pruning.choose_every > 1 for pruning in settings):
        raise DatoError("latency table: with choose_every above 1 a call does not take the same time everywhere")
    pruning, kinds = settings.pop(), {kind for schedule in schedules for kind in call_kinds(schedule)}
    steps_of = lengths(pipe, CALLS)
    repeats = min(4, max(2, 48 // max(1, len(kinds))))  # of many kinds each one's error weighs less in a sum
    rng = random.Random(seed)

    generations: list[tuple[Sequence[CallKind | None], list[float], float]] = []  # kinds, their milliseconds, the whole
    for turn in range(rounds + 1):
        found = probes(kinds, rungs, pruning, max(steps_of), rng, repeats if turn else 1)
        rng.shuffle(found)
        turns = [part for probe in found for part in (None, probe)]  # None: stock
        for number, probe in enumerate(turns):
            wanted = SHORT if probe is None else len(probe)
            length = next((n for n in steps_of if n >= wanted), max(steps_of))
            if probe is not None:
                probe = _padded(probe, length)
            running = nullcontext() if probe is None else patched(pipe, probe)
            with running, forward_times(pipe.unet) as watch:
                result = generate(pipe, batch, replace(sampling, steps=steps_of[length]))
                times = [ms / len(batch) for ms in watch.read()]
            progress(turn + (number + 1) / len(turns), rounds + 1)
            if turn:  # the first round warms up
                run = [None] * length if probe is None else call_kinds(probe)  # None: a call of stock
                generations.append((run, times, result.latency_ms[0]))

    samples: defaultdict[CallKind | None, list[float]] = defaultdict(list)
    for run, times, _ in generations:
        for kind, ms in zip(run[1:], times[1:], strict=True):
            samples[kind].append(ms)
    calls = {kind: typical(each) for kind, each in samples.items()}
    # What a generation's first call takes more than others of its kind, it takes once: it goes to the image.
    outside = [(len(run), whole - sum(times[1:]) - calls[run[0]]) for run, times, whole in generations]
    stock = calls.pop(None)
    ordered = {kind: calls[kind] for kind in sorted(calls, key=_in_order)}
    return LatencyTable(rungs, ordered, stock, *fixed_parts(outside), pruning)


def typical(times: Sequence[float]) -> float:
    """The mean without the highest and the lowest tenth.

    A schedule's time is a sum of calls, some of which are held up: a sum of medians falls short of it.
    """
    cut = min(-(-len(times) // 10), (len(times) - 1) // 2)
    return statistics.mean(sorted(times)[cut : len(times) - cut])


def probes(
    kinds: Collection[CallKind], rungs: int, pruning: Pruning, longest: int, rng: random.Random, repeats: int
) -> list[Schedule]:
    """Schedules of at most `longest` calls in which each of these kinds occurs `repeats` times, in random order.

    Kinds that one schedule cannot hold, because it has one rule to forecast by and either prunes or does not, come in
    different ones; whole calls are in all.
    """
    groups: defaultdict[tuple[str, bool], list[CallKind]] = defaultdict(list)
    for kind in sorted(set(kinds) - {CallKind(rungs), CallKind(rungs, 0.0)}, key=_in_order):
        groups[kind.forecast, kind.ratio is not None].append(kind)
    found = []
    for (forecast, pruned), group in (groups or {("polynomial", False): []}).items():
        whole = CallKind(rungs, 0.0 if pruned else None)
        bag = [*group, whole] * repeats
        rng.shuffle(bag)
        parts = -(-len(bag) // max(1, longest - BEGIN))
        for part in range(parts):
            depths, ratios, orders, _ = zip(*[whole] * BEGIN, *bag[part::parts], strict=True)
            ratios = [ratio or 0.0 for ratio in ratios]
            found.append(Schedule(depths, ratios, orders, rungs, pruning, forecast))
    return found


def fixed_parts(outside: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """What generations take outside the UNet for each call and once, from generations of different lengths.

    The median slope between two of them, and the median of what is left (Theil and Sen); neither is below 0.

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
    return kind.forecast, kind.ratio is not None, kind  # None and numbers have no order


def _padded(schedule: Schedule, calls: int) -> Schedule:
    """The schedule with whole calls at its end."""
    more = calls - len(schedule)
    return replace(
        schedule,
        depths=schedule.depths + (schedule.rungs,) * more,
        ratios=schedule.ratios + (0.0,) * more,
        orders=schedule.orders + (0,) * more,
    )
