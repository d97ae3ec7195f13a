"""Baselines: schedules that need no search, which a search has to beat, and regular ones that it can start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dato.schedule import Schedule

# A search against few steps has these, too: users of 25 steps know what 20 look like. They cost too much against 50.
MORE_SHARES, FEW_STEPS = (0.8, 0.6), 30
SHARES = (0.5, 0.4, 0.3, 0.2, 0.16, 0.12, 0.1)  # of the reference's steps: 25, 20, 15, 10, 8, 6 and 5 of 50
STOCK_FAMILY, UNIFORM_FAMILY, OTHER_FAMILY = "stock, fewer steps", "uniform schedules", "other methods"


def all_baselines(steps_of: Mapping[int, int], calls: int, rungs: int) -> dict[str, Schedule]:
    """Return the named schedules that every search judges too.

    Args:
        steps_of: Number of UNet calls -> number of steps, for all lengths that can be judged.
        calls: UNet calls of the reference.
        rungs: Rungs of the UNet.
    """
    return stock(steps_of, calls, rungs) | uniform(calls, rungs) | spectrum(calls, rungs)


def fewer_steps(steps: int, more: bool = False) -> list[int]:
    """Return the numbers of steps below `steps` at which stock is a baseline, the highest first.

    Args:
        steps: Those of the reference.
        more: Whether there are more of them if `steps` is at most `FEW_STEPS`.
    """
    shares = (*MORE_SHARES, *SHARES) if more and steps <= FEW_STEPS else SHARES
    return sorted({round(share * steps) for share in shares if 2 <= round(share * steps) < steps}, reverse=True)


def stock(steps_of: Mapping[int, int], calls: int, rungs: int) -> dict[str, Schedule]:
    """Return stock with fewer steps than the reference, which has `calls` calls: {"25 steps": every call whole, ...}.

    Arguments as for `all_baselines`.
    """
    shorter = sorted((n for n in steps_of if n < calls), reverse=True)
    return {f"{steps_of[n]} steps": Schedule.full(n, rungs=rungs) for n in shorter}


def uniform(calls: int, rungs: int) -> dict[str, Schedule]:
    """Return uniform schedules, as DeepCache's: {"N=3 d=1": every 3rd call whole, the others at depth 1, ...}."""
    settings = [(2, 1), (2, 3), (3, 0), (3, 1), (5, 0), (5, 1), (7, 1), (10, 0)]  # (N, d)
    return {f"N={n} d={d}": Schedule.uniform(calls, n, d, rungs=rungs) for n, d in settings if d < rungs and n < calls}


def spectrum(calls: int, rungs: int) -> dict[str, Schedule]:
    """Return Spectrum as published, with both of its window growths (Han et al., CVPR 2026)."""
    growths = {"Spectrum": 0.75, "Spectrum, windows +3": 3.0}
    return {
        name: Schedule.growing(calls, growth=growth, rungs=rungs, forecast="chebyshev")
        for name, growth in growths.items()
        if calls > 6
    }


def family_of(schedule: Schedule) -> str:
    """Return the family that a baseline belongs to, as charts name it.

    `STOCK_FAMILY`: every call is whole. `UNIFORM_FAMILY`: every N-th call is whole, the others have one depth and
    forecast nothing. `OTHER_FAMILY`: everything else, and all schedules that prune tokens.
    """
    calls, rungs = len(schedule), schedule.rungs
    if any(schedule.ratios):
        return OTHER_FAMILY
    shallow_depths = sorted({depth for depth in schedule.depths if depth != rungs})
    if not shallow_depths:
        return STOCK_FAMILY
    interval = next(call for call in range(1, calls + 1) if call == calls or schedule.depths[call] == rungs)
    regular = Schedule.uniform(calls, interval, shallow_depths[0], rungs=rungs).depths == schedule.depths
    forecasts = any(order for depth, _, order in schedule.entries if depth < rungs)
    return UNIFORM_FAMILY if regular and not forecasts else OTHER_FAMILY


def seeds(
    lengths: Sequence[int], rungs: int, orders: Sequence[int], forecast: str = "polynomial", count: int = 0
) -> list[Schedule]:
    """Return regular schedules from which a search can start.

    Args:
        lengths: Numbers of UNet calls.
        rungs: Rungs of the UNet.
        orders: Orders of the forecasts.
        forecast: The rule of the forecasts of order 1 and more.
        count: How many are wanted. Each length and order gets 3 to 7 schedules, depending on this.
    """
    settings = [(3, 0), (3, 1), (2, 1), (5, 0), (5, 1), (2, 3), (10, 0)]  # (interval, depth)
    settings = settings[: max(3, count // (len(lengths) * len(orders)))]
    return [
        Schedule.uniform(calls, interval, depth, order, rungs=rungs, forecast=forecast).canonical()
        for order in sorted(orders, reverse=True)
        for interval, depth in settings
        for calls in lengths
        if interval < calls
    ]
