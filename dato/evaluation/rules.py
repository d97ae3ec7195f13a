"""Rules: schedules that one line of Python writes, without a search. A search has to beat them all.

There are five kinds, each for every number of calls, depth and order of forecast:

- every N-th call whole (`Schedule.uniform`, N from 1, which is stock with fewer steps, to 10);
- some calls whole, spread evenly from the first to the last (`Schedule.spread`); the longer distances mixed with the
  others, or last, or first;
- the first few calls whole, the last one or two, the others spread evenly, or ever farther apart (`Schedule.spread`
  with a warm-up, a cool-down, growth, or all of them);
- whole calls spread in the same ways, but the last one or two calls are not whole (`Schedule.spread` with a tail);
- windows that grow, after a few whole calls (`Schedule.growing`).

`rules` lists all of them. There are too many to judge, and guessing the error and time of each costs nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from dato.errors import DatoError
from dato.schedule import Schedule

INTERVALS = range(1, 11)
WARMUPS = (1, 2, 3)  # of spread whole calls
COOLDOWNS = (1, 2)  # of spread whole calls
TAILS = (1, 2)  # after the last whole call
GROWTHS = (1.0, 1.25, 1.5)  # of spread whole calls; an even spread grows by 1
WINDOWS = ((1, 0.5), (1, 1), (2, 0.75), (3, 0.5), (3, 1), (5, 0.75), (5, 3))  # (whole calls first, growth)
FINENESS = 1.2  # from one number of whole calls to the next; a longer list has more rules that differ little


def rules(
    lengths: Sequence[int],
    rungs: int,
    depths: Sequence[int] = (0, 1),
    orders: Sequence[int] = (0, 1),
    forecast: str = "polynomial",
) -> list[Schedule]:
    """Return every rule once, in its canonical spelling.

    Args:
        lengths: Numbers of UNet calls. For 10, 15, 20, 25 and 50 calls there are about 3,300 rules.
        rungs: Rungs of the UNet.
        depths: Depths of the calls that are not whole. Those that the UNet does not have are left out.
        orders: Orders of their forecasts.
        forecast: The rule of forecasts of order 1 and more.

    Raises:
        DatoError: if a length, order or forecast is not valid, or no depth is left.

    Example:
        >>> schedules = rules([50], 12)
        >>> Schedule.spread(50, 10) in schedules, Schedule.uniform(50, 6, 0, order=1) in schedules
        (True, True)
    """
    depths = [depth for depth in depths if 0 <= depth < rungs]
    if not depths:
        raise DatoError(f"rules: a UNet of {rungs} rungs has none of the depths that are asked for")
    schedules = (
        schedule.canonical()
        for calls in lengths
        for depth in depths
        for order in orders
        for schedule in _of_calls(calls, depth, order, rungs, forecast)
    )
    return list(dict.fromkeys(schedules))


def whole_calls(calls: int, fewest: int = 4) -> list[int]:
    """Return numbers of whole calls from half of all calls down to `fewest`, spaced evenly by their logarithm.

    Each is a sixth less than the one before it, rounded.

    Example:
        >>> whole_calls(50)
        [25, 21, 17, 14, 12, 10, 8, 7, 6, 5, 4]
    """
    counts, count = [], float(fewest)
    while round(count) <= calls // 2:
        counts.append(round(count))
        count *= FINENESS
    return sorted(set(counts), reverse=True)


def _of_calls(calls: int, depth: int, order: int, rungs: int, forecast: str) -> Iterator[Schedule]:
    """Yield all rules of one length, depth and order. Some may be equal."""
    common = {"rungs": rungs, "forecast": forecast}
    for interval in INTERVALS:
        yield Schedule.uniform(calls, interval, depth, order, **common)
    for whole in range(1, calls + 1):
        yield Schedule.spread(calls, whole, depth, order, **common)
    for whole in whole_calls(calls, fewest=3):
        for shorter in ("first", "last"):
            yield Schedule.spread(calls, whole, depth, order, shorter=shorter, **common)
        for warmup, cooldown, growth in itertools.product(WARMUPS, COOLDOWNS, GROWTHS):
            if warmup + cooldown <= whole:
                ends = {"warmup": warmup, "cooldown": cooldown}
                yield Schedule.spread(calls, whole, depth, order, **ends, growth=growth, **common)
        for tail, growth in itertools.product(TAILS, GROWTHS):
            yield Schedule.spread(calls, whole, depth, order, growth=growth, tail=tail, **common)
    for warmup, growth in WINDOWS:
        if warmup < calls:
            yield Schedule.growing(calls, depth, order, warmup=warmup, growth=growth, **common)


def rule_name(schedule: Schedule) -> str:
    """Return what tables call a rule. Rules of other orders, or of somewhat other distances, may have the same name.

    "ending early" says that the last call is not whole, and "growing" that the distances between whole calls grow.

    Example:
        >>> rule_name(Schedule.spread(50, 10))
        'rule: 10 of 50 whole'
        >>> rule_name(Schedule.spread(50, 11, 1, growth=1.25))
        'rule: 11 of 50 whole, else d=1, growing'
        >>> rule_name(Schedule.spread(50, 7, growth=1.25, tail=1))
        'rule: 7 of 50 whole, ending early'
    """
    places = [call for call, depth in enumerate(schedule.depths) if depth == schedule.rungs]
    distances = [after - before for before, after in itertools.pairwise(places)]
    name = f"rule: {len(places)} of {len(schedule)} whole"
    if partial := sorted({depth for depth in schedule.depths if 0 < depth < schedule.rungs}):
        name += f", else d={','.join(map(str, partial))}"
    if places[-1] < len(schedule) - 1:
        return f"{name}, ending early"
    # Even distances differ by 1 at most.
    return f"{name}, growing" if distances and distances[0] + 1 < max(distances) else name
