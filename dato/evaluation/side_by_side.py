"""Time stock and several methods again, in turns, so that all of them see the same state of the machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from dato.evaluation.evaluator import Evaluator
from dato.evaluation.methods import Method, as_method
from dato.generation.sampling import Generated
from dato.point import Point
from dato.schedule import Schedule


def retime(
    evaluator: Evaluator,
    points: Mapping[Schedule | Method, Point],
    rounds: int,
    progress: Callable[[], None] = lambda: None,
) -> tuple[Point, list[Point]]:
    """Time stock and these methods side by side.

    In every round each of them generates the first batch of prompts once, one after the other. So a machine that
    becomes faster or slower does so for all of them. A candidate whose time in the search was too short by chance gets
    a new time. Times are measured even if the evaluator predicts latencies.

    Args:
        evaluator: What generates.
        points: The methods and their points so far.
        rounds: Number of rounds. With 0 the points stay as they are.
        progress: Called after each generation.

    Returns:
        Stock's point and the points of the methods, with the new times and speed-ups.
    """
    evaluator.warm_up()
    methods = [evaluator.stock_method, *(as_method(method, evaluator.compiled) for method in points)]
    generations: list[list[Generated]] = [[] for _ in methods]
    for _ in range(rounds):
        for method, results in zip(methods, generations, strict=True):
            first_batch = evaluator.prompts[: evaluator.sampling.batch_size]
            results.append(evaluator.generate(method, first_batch, evaluator.sampling))
            progress()
    timed = [evaluator.baseline, *points.values()]
    if rounds:
        timed = [_timed(point, results) for point, results in zip(timed, generations, strict=True)]
        stock_ms = timed[0].latency_ms
        timed = [replace(point, speedup=stock_ms / point.latency_ms) for point in timed]
    baseline, *others = timed
    return baseline, others


def _timed(point: Point, generations: Sequence[Generated]) -> Point:
    """Return a point with the median times of these generations, each of one batch."""
    latency = statistics.median(g.latency_ms[0] for g in generations)
    unet = statistics.median(g.unet_ms[0] for g in generations)
    return replace(point, latency_ms=latency, metrics={**point.metrics, "unet_ms": unet, "measured_ms": latency})
