"""A schedule in a few characters, as tables show it."""

from __future__ import annotations

from collections.abc import Iterable

from dato.schedule import Schedule

FULL, NOTHING = "█", "·"
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def strip(schedule: Schedule) -> str:
    """Return the depths as one character a call: █ the whole UNet, · nothing, else the depth (in base 36)."""
    return strip_of(schedule.depths, schedule.rungs)


def strip_of(depths: Iterable[int], rungs: int) -> str:
    """Return these depths of a UNet of so many rungs, as `strip` does."""
    return "".join(FULL if depth == rungs else NOTHING if depth == 0 else _DIGITS[depth] for depth in depths)


def mean_ratio(schedule: Schedule) -> float:
    """Return the mean prune ratio of the calls that run anything."""
    ratios = [ratio for depth, ratio, _ in schedule.entries if depth]
    return sum(ratios) / len(ratios)


def forecast_of(schedule: Schedule) -> str:
    """Return the order of the forecasts, with the rule if it is not the polynomial: "", "1", "0-2", "1 aligned"."""
    orders = {order for depth, _, order in schedule.entries if depth < schedule.rungs}
    if not any(orders):
        return ""
    span = f"{max(orders)}" if len(orders) == 1 else f"{min(orders)}-{max(orders)}"
    return span if schedule.forecast == "polynomial" else f"{span} {schedule.forecast}"
