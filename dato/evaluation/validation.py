"""Validate: judge the finalists of a search by prompts and noise that no candidate was judged by before.

A search picks the schedules that look best on its own images, so what these say of them is too good. Validation images
say what a user will get. Times are predicted by the search's table, or measured anew if the search measures times.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from dato.evaluation.evaluator import Evaluator
from dato.evaluation.judgement import Judgement
from dato.evaluation.racing import Rival
from dato.evaluation.stock import Stock
from dato.point import Point
from dato.schedule import Schedule

OTHER_NOISE = 1_000_000  # added to the seed of the search's images
RACE = 2  # images after which a rival of the finalists may be given up, then after twice as many, and so on


def validation_evaluator(evaluator: Evaluator, prompts: Sequence[str]) -> Evaluator:
    """Return an evaluator like this one, with these prompts and other noise."""
    return Evaluator(
        evaluator.pipe,
        prompts,
        replace(evaluator.sampling, seed=evaluator.sampling.seed + OTHER_NOISE),
        evaluator.metrics,
        steps=tuple(evaluator.steps_of.values()),
        race=RACE,
        interleave=True,
        doubling=True,
        compiled=evaluator.compiled,
    )


def validation_stock(evaluator: Evaluator) -> Stock:
    """Return stock on the validation prompts, without its images, which every worker makes for itself."""
    evaluator.validation.latency = evaluator.latency
    stock = evaluator.validation.stock
    point = replace(stock.point, metrics=_with_table(evaluator, stock.point.schedule, stock.point.metrics))
    return replace(stock, point=point, images=stock.images[:0])


def validated(evaluator: Evaluator, stock: Point, schedule: Schedule, rivals: Sequence[Rival] = ()) -> Judgement:
    """Judge a schedule by the validation prompts.

    Args:
        evaluator: It has an evaluator for validation.
        stock: Stock as `validation_stock` has measured it first. A search that is resumed, or has several workers,
            generates stock's images again, and its times must stay the same.
        schedule: The schedule.
        rivals: Points that are validated already. If one is surely better and as fast, the schedule gets no further
            images, and its quality is the expected one.

    Returns:
        The judgement. Metrics of its point also hold `spread`, the standard deviation of the quality over images if it
        got all, and `table_ms`, the latency that the search's table predicts.
    """
    validation = evaluator.validation
    validation.latency = evaluator.latency
    validation.stock = replace(validation.stock, point=stock)
    judgement = validation.judge(schedule, rivals)
    if judgement.failure is not None:
        return judgement
    metrics = _with_table(evaluator, schedule, judgement.point.metrics)
    if 1 < len(judgement.per_image) == len(validation.prompts):
        metrics["spread"] = statistics.stdev(judgement.per_image)
    return replace(judgement, point=replace(judgement.point, metrics=metrics))


def _with_table(evaluator: Evaluator, schedule: Schedule, metrics: dict[str, float]) -> dict[str, float]:
    return {**metrics, **({} if evaluator.latency is None else {"table_ms": evaluator.latency(schedule)})}
