"""What a search has to beat: stock with fewer steps, uniform schedules (DeepCache), and Spectrum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dato.schedule import Schedule

SHARES = (0.5, 0.4, 0.3, 0.2, 0.16, 0.12, 0.1)  # 25, 20, 15, 10, 8, 6 and 5 of 50 steps


def fewer_steps(steps: int) -> list[int]:
    """Numbers of steps below `steps` at which stock itself is a reference."""
    return sorted({round(share * steps) for share in SHARES if 2 <= round(share * steps) < steps}, reverse=True)


def stock(steps_of: Mapping[int, int], calls: int, rungs: int) -> dict[str, Schedule]:
    """Stock with fewer steps than the reference of `calls` calls: {"25 steps": every call whole, ...}."""
    shorter = sorted((n for n in steps_of if n < calls), reverse=True)
    return {f"{steps_of[n]} steps": Schedule.full(n, rungs=rungs) for n in shorter}


def uniform(calls: int, rungs: int) -> dict[str, Schedule]:
    """Uniform schedules, DeepCache's kind: {"N=3 d=1": every 3rd call whole, the others at depth 1, ...}."""
    kinds = [(2, 1), (2, 3), (3, 0), (3, 1), (5, 0), (5, 1), (7, 1), (10, 0)]
    return {f"N={n} d={d}": Schedule.uniform(calls, n, d, rungs=rungs) for n, d in kinds if d < rungs and n < calls}


def spectrum(calls: int, rungs: int) -> dict[str, Schedule]:
    """Spectrum as published, with both of its window growths (Han et al., CVPR 2026)."""
    settings = {"Spectrum": 0.75, "Spectrum, windows +3": 3.0}
    return {
        name: Schedule.growing(calls, growth=growth, rungs=rungs, forecast="chebyshev")
        for name, growth in settings.items()
        if calls > 6
    }


def family_of(schedule: Schedule) -> str:
    """What kind of reference a schedule is: "stock, fewer steps", "uniform schedules" or "other methods"."""
    calls, rungs = len(schedule), schedule.rungs
    if any(schedule.ratios):
        return "other methods"
    partial = sorted({depth for depth in schedule.depths if depth != rungs})
    if not partial:
        return "stock, fewer steps"
    interval = next(call for call in range(1, calls + 1) if call == calls or schedule.depths[call] == rungs)
    regular = Schedule.uniform(calls, interval, partial[0], rungs=rungs).depths == schedule.depths
    reused = all(order == 0 for depth, _, order in schedule.entries if depth < rungs)
    return "uniform schedules" if regular and reused else "other methods"


def references(steps_of: Mapping[int, int], calls: int, rungs: int) -> dict[str, Schedule]:
    """Named schedules that every search evaluates too.

    Args:
        steps_of: Number of UNet calls -> number of steps, of all lengths that can be judged.
        calls: UNet calls of the reference.
        rungs: Rungs of the UNet.
    """
    return stock(steps_of, calls, rungs) | uniform(calls, rungs) | spectrum(calls, rungs)


def seeds(
    lengths: Sequence[int], rungs: int, orders: Sequence[int], forecast: str = "polynomial", count: int = 0
) -> list[Schedule]:
    """Regular schedules of every length and order to begin a search from: three kinds, or more if `count` has room."""
    kinds = [(3, 0), (3, 1), (2, 1), (5, 0), (5, 1), (2, 3), (10, 0)]
    kinds = kinds[: max(3, count // (len(lengths) * len(orders)))]
    return [
        Schedule.uniform(calls, n, d, order, rungs=rungs, forecast=forecast).canonical()
        for order in sorted(orders, reverse=True)
        for n, d in kinds
        for calls in lengths
        if n < calls
    ]
