"""Compare the predictions of a latency table with measurements."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from diffusers import DiffusionPipeline

from dato.errors import DatoError
from dato.forecast_rule import POLYNOMIAL
from dato.generation.sampling import Sampling, generate
from dato.prediction.latency_table import LatencyTable, is_stock
from dato.pruning import Pruning
from dato.samplers import lengths
from dato.schedule import SD_RUNGS, Schedule
from dato.unet.patch import patched, remove_patch


@dataclass(frozen=True)
class Pair:
    """A schedule's predicted and measured latency, end to end, in milliseconds per image."""

    predicted: float
    measured: float


@dataclass(frozen=True)
class TableCheck:
    """Predictions against measurements.

    Attributes:
        pairs: One pair for each schedule.
        stock: The pair of the stock pipeline, measured in turn with the schedules.
    """

    pairs: tuple[Pair, ...]
    stock: Pair

    @property
    def errors(self) -> list[float]:
        """|predicted / measured - 1| of each schedule's latency."""
        return [abs(p.predicted / p.measured - 1) for p in self.pairs]

    @property
    def speedup_errors(self) -> list[float]:
        """The same of speed-ups over stock, which do not change if the machine becomes faster or slower."""
        drift = self.stock.predicted / self.stock.measured
        return [abs(drift * p.measured / p.predicted - 1) for p in self.pairs]

    def __str__(self) -> str:
        (time, worst), (speedup, most) = (
            (f"{statistics.median(errors):.1%}", f"{max(errors):.1%}") for errors in (self.errors, self.speedup_errors)
        )
        return (
            f"The latency table against the clock, {len(self.pairs)} schedules: times off by {time} (worst {worst}), "
            f"speed-ups by {speedup} (worst {most})"
        )


def check_table(
    table: LatencyTable,
    schedules: Sequence[Schedule],
    measure: Callable[[Schedule], float],
    *,
    stock: Schedule,
    rounds: int = 3,
    progress: Callable[[], None] = lambda: None,
) -> TableCheck:
    """Measure schedules in turn with stock, and compare that with what a table predicts.

    Args:
        table: The table.
        schedules: The schedules to measure.
        measure: Returns the milliseconds per image of one generation with a schedule, end to end: see `measurer`.
        stock: The stock pipeline's schedule, all whole.
        rounds: How often each schedule is measured, in turn; the medians count. Stock runs once before to warm up.
        progress: Is called after each measurement.

    Raises:
        DatoError: if a call of a schedule is not in the table.
    """
    turns = [stock, *schedules]
    predicted = [table.predict(schedule) for schedule in turns]
    times: list[list[float]] = [[] for _ in turns]
    measure(stock)
    for _ in range(rounds):
        for schedule, measured in zip(turns, times, strict=True):
            measured.append(measure(schedule))
            progress()
    first, *others = (Pair(p, statistics.median(m)) for p, m in zip(predicted, times, strict=True))
    return TableCheck(tuple(others), first)


def measurer(pipe: DiffusionPipeline, prompts: Sequence[str], sampling: Sampling) -> Callable[[Schedule], float]:
    """Return a function that measures a schedule, for `check_table`, by generating the first batch of prompts.

    The number of steps is the one that makes as many calls as the schedule has. A stock schedule runs without a patch.
    The function raises DatoError if the sampler cannot make this number of calls.
    """
    remove_patch(pipe)
    batch = list(prompts[: sampling.batch_size])

    def measure(schedule: Schedule) -> float:
        steps = lengths(pipe, len(schedule)).get(len(schedule))
        if steps is None:
            raise DatoError(f"{type(pipe.scheduler).__name__} makes no generation of {len(schedule)} calls")
        with nullcontext() if is_stock(schedule) else patched(pipe, schedule):
            return generate(pipe, batch, replace(sampling, steps=steps)).latency_ms[0]

    return measure


def random_schedules(
    count: int,
    lengths: Sequence[int],
    *,
    depths: Sequence[int],
    orders: Sequence[int] = (0,),
    forecast: str = POLYNOMIAL.name,
    ratios: Sequence[float] = (0.0,),
    pruning: Pruning | None = None,
    rungs: int = SD_RUNGS,
    seed: int = 0,
) -> list[Schedule]:
    """Return different random schedules, from mostly whole calls to almost none.

    Args:
        count: The number of schedules.
        lengths: Numbers of UNet calls to choose from.
        depths: Depths to choose from for calls that are not whole.
        orders: Orders to choose from; each schedule has one of them.
        forecast: What orders above 0 mean.
        ratios: Ratios to choose from for each call.
        pruning: The settings of token pruning that belong to the ratios.
        rungs: The number of rungs of the UNet.
        seed: The same seed gives the same schedules.

    Raises:
        DatoError: if there are fewer than `count`.
    """
    rng = random.Random(seed)
    schedules: dict[Schedule, None] = {}
    for _ in range(100 * count):
        if len(schedules) == count:
            break
        whole = rng.uniform(0.05, 0.8)
        chosen = [rungs if rng.random() < whole else rng.choice(list(depths)) for _ in range(rng.choice(lengths) - 1)]
        drawn = [rng.choice(list(ratios)) if depth else 0.0 for depth in (rungs, *chosen)]
        order = rng.choice(list(orders))
        schedules[Schedule((rungs, *chosen), drawn, order, rungs, pruning or Pruning(), forecast).canonical()] = None
    if len(schedules) < count:
        raise DatoError(f"there are no {count} different schedules of these lengths, depths and ratios")
    return list(schedules)
