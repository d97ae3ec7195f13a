"""How far a latency table is from the clock."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from diffusers import DiffusionPipeline

from dato.errors import DatoError
from dato.generation.sampling import Sampling, generate
from dato.prediction.latency_table import LatencyTable, is_stock
from dato.pruning import Pruning
from dato.samplers import lengths
from dato.schedule import SD_RUNGS, Schedule
from dato.unet.patch import patched, remove_patch


@dataclass(frozen=True)
class Pair:
    """A schedule's latency as predicted and as measured, end to end, in milliseconds per image."""

    predicted: float
    measured: float


@dataclass(frozen=True)
class TableCheck:
    """Predictions against measurements.

    Attributes:
        pairs: One for each schedule.
        stock: Of the stock pipeline, measured in turn with them.
    """

    pairs: tuple[Pair, ...]
    stock: Pair

    @property
    def errors(self) -> list[float]:
        """|predicted / measured - 1| of each schedule's time."""
        return [abs(p.predicted / p.measured - 1) for p in self.pairs]

    @property
    def speedup_errors(self) -> list[float]:
        """The same of speed-ups over stock, which hold where the machine has become faster or slower since."""
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
    """Measure schedules in turn with stock, and set that beside what a table predicts.

    Args:
        table: The table.
        schedules: What to measure.
        measure: Gives milliseconds per image of one generation with a schedule, end to end: see `measurer`.
        stock: The schedule of stock's own length, all whole.
        rounds: Each is measured so often, in turn; the medians count. Stock runs once before them to warm up.
        progress: Called after each measurement.

    Raises:
        DatoError: if the table does not know a call of a schedule.
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
    """What measures a schedule, for `check_table`: a generation of the first batch of prompts.

    The number of steps is the one that makes as many calls as the schedule has; whole calls without a ratio run
    without a patch. Raises DatoError where the sampler cannot make so many calls.
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
    forecast: str = "polynomial",
    ratios: Sequence[float] = (0.0,),
    pruning: Pruning | None = None,
    rungs: int = SD_RUNGS,
    seed: int = 0,
) -> list[Schedule]:
    """Different random schedules, from mostly whole calls to almost none.

    Args:
        count: How many.
        lengths: Numbers of UNet calls; each schedule has one of them.
        depths: What calls that are not whole have.
        orders: Each schedule has one of them.
        forecast: What orders above 0 mean.
        ratios: What calls have.
        pruning: The settings that the ratios are meant with.
        rungs: Rungs of the UNet.
        seed: The same seed gives the same schedules.

    Raises:
        DatoError: if there are not so many.
    """
    rng = random.Random(seed)
    found: dict[Schedule, None] = {}
    for _ in range(100 * count):
        if len(found) == count:
            break
        whole = rng.uniform(0.05, 0.8)
        chosen = [rungs if rng.random() < whole else rng.choice(list(depths)) for _ in range(rng.choice(lengths) - 1)]
        drawn = [rng.choice(list(ratios)) if depth else 0.0 for depth in (rungs, *chosen)]
        order = rng.choice(list(orders))
        found[Schedule((rungs, *chosen), drawn, order, rungs, pruning or Pruning(), forecast).canonical()] = None
    if len(found) < count:
        raise DatoError(f"there are no {count} different schedules of these lengths, depths and ratios")
    return list(found)
