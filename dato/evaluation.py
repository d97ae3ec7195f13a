"""Judging schedules: the same prompts, the same noise, one pipeline and one set of metrics for all of them."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

from diffusers import DiffusionPipeline
from torch import Tensor

from dato.errors import DatoError
from dato.front import Point
from dato.ladder import Ladder
from dato.patch import patched, remove_patch
from dato.quality import QualityMetric
from dato.sampling import Generated, Sampling, generate, num_calls
from dato.schedule import Schedule


class Evaluator:
    """Turns schedules into points. A schedule that was judged before is not judged again.

    Making one takes the patch and the safety checker off the pipeline; stock's images are generated when they are
    first needed.

    Args:
        pipe: The pipeline, on its device.
        prompts: One image is generated for each.
        sampling: How.
        metrics: The first one is the objective (`Point.quality`); the others are recorded.
        latency: Milliseconds per image of a schedule; None: measured while its images are generated (end to end, the
            median over batches).

    Attributes:
        calls: UNet calls of one generation.
        rungs: Rungs of the UNet.
        judged: All points so far, by schedule, in the order in which they were judged.
        images: Number of images generated so far.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        prompts: Sequence[str],
        sampling: Sampling,
        metrics: Sequence[QualityMetric],
        latency: Callable[[Schedule], float] | None = None,
    ) -> None:
        if getattr(pipe, "safety_checker", None) is not None:
            pipe.safety_checker = None  # a picture turned black says nothing about a schedule, and takes time
        self.pipe, self.prompts, self.sampling, self.metrics = remove_patch(pipe), list(prompts), sampling, metrics
        self._latency = latency
        self.calls, self.rungs = num_calls(pipe, sampling.steps), len(Ladder(pipe.unet))
        self.judged: dict[Schedule, Point] = {}
        self.images = 0

    @cached_property
    def baseline(self) -> Point:
        """Stock as a point; its images, which are generated now, are what fidelity is measured against."""
        warm_up = replace(self.sampling, steps=2)
        generate(self.pipe, self.prompts[: self.sampling.batch_size], warm_up)
        stock = self._generate()
        if not stock.images.isfinite().all():
            raise DatoError("stock's images are not finite numbers: give --dtype float32 or bfloat16")
        self._references = stock.images
        return self._point(Schedule.full(self.calls, rungs=self.rungs), stock, baseline_ms=None)

    def __call__(self, schedule: Schedule) -> Point:
        """Generate the schedule's images and judge them, or return what is known of it."""
        if schedule not in self.judged:
            stock_ms = self.baseline.latency_ms
            with patched(self.pipe, schedule):
                result = self._generate()
            self.judged[schedule] = self._point(schedule, result, stock_ms)
        return self.judged[schedule]

    def retime(
        self, schedules: Sequence[Schedule], rounds: int, progress: Callable[[], None] = lambda: None
    ) -> tuple[Point, list[Point]]:
        """Time stock and these schedules again, side by side, and return stock's and their points with those times.

        In every round each of them generates the first batch of prompts once, one after the other, so that a machine
        that speeds up or slows down does so for all; a candidate that was lucky once in the search is found out.
        """
        contenders = [None, *schedules]
        times: list[list[Generated]] = [[] for _ in contenders]
        for _ in range(rounds if self._latency is None else 0):
            for schedule, measured in zip(contenders, times, strict=True):
                measured.append(self._first_batch(schedule))
                progress()
        points = [self.baseline, *(self.judged[s] for s in schedules)]
        if self._latency is None and rounds:
            points = [
                replace(
                    point,
                    latency_ms=statistics.median(g.latency_ms[0] for g in measured),
                    metrics={**point.metrics, "unet_ms": statistics.median(g.unet_ms[0] for g in measured)},
                )
                for point, measured in zip(points, times, strict=True)
            ]
        stock = points[0].latency_ms
        baseline, *others = [replace(point, speedup=stock / point.latency_ms) for point in points]
        return baseline, others

    def images_of(self, schedule: Schedule | None, count: int) -> Tensor:
        """The images (count, 3, H, W) of a schedule (None: stock) for the first prompts, to be looked at."""
        with contextlib.nullcontext() if schedule is None else patched(self.pipe, schedule):
            return generate(self.pipe, self.prompts[:count], self.sampling).images

    def _first_batch(self, schedule: Schedule | None) -> Generated:
        with contextlib.nullcontext() if schedule is None else patched(self.pipe, schedule):
            return generate(self.pipe, self.prompts[: self.sampling.batch_size], self.sampling)

    def _generate(self) -> Generated:
        self.images += len(self.prompts)
        return generate(self.pipe, self.prompts, self.sampling)

    def _point(self, schedule: Schedule, result: Generated, baseline_ms: float | None) -> Point:
        scores = {m.name: m(result.images, self.prompts, self._references) for m in self.metrics}
        latency = statistics.median(result.latency_ms) if self._latency is None else self._latency(schedule)
        metrics = {**scores, "unet_ms": statistics.median(result.unet_ms)}
        speedup = 1.0 if baseline_ms is None else baseline_ms / latency
        return Point(schedule, scores[self.metrics[0].name], latency, speedup, metrics)
