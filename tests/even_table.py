"""A latency table that is the same in every search, as if a clock ran evenly."""

from dato.prediction.latency_table import LatencyTable, call_kinds
from dato.pruning import Pruning


def measured(pipe, prompts, sampling, schedules, progress=None, rounds=3, compiled=None):
    """Stand in for `measure_table`."""
    kinds = {kind: 1.0 + kind.depth for schedule in schedules for kind in call_kinds(schedule)}
    pruning = next((schedule.pruning for schedule in schedules if any(schedule.ratios)), Pruning())
    return LatencyTable(schedules[0].rungs, kinds, stock=13.0, per_call=0.1, per_image=1.0, pruning=pruning)
