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
from dato.latency import is_stock
from dato.patch import patched, remove_patch
from dato.peers import Peer
from dato.quality import QualityMetric
from dato.samplers import num_calls, sampler_name
from dato.sampling import Generated, Sampling, generate
from dato.schedule import Schedule


class Evaluator:
    """Turns schedules (and peers' methods) into points. What was judged before is not judged again.

    Making one takes the patch and the safety checker off the pipeline; stock's images are generated when they are
    first needed.

    Args:
        pipe: The pipeline, on its device.
        prompts: One image is generated for each.
        sampling: How. Its steps are those of the reference images and of the baseline.
        steps: Further numbers of steps for which schedules may be judged; the length of a schedule says for which.
        metrics: The first one is the objective (`Point.quality`); the others are recorded.
        latency: Milliseconds per image of a schedule, predicted, as by `LatencyTable.predict`; it is then what counts,
            so that the same seed gives the same front. None: what is measured while the images are generated (end to
            end, the median over batches) counts. Peers are measured always.

    The metrics of a point hold both: `measured_ms`, and `table_ms` where there is a prediction.

    Attributes:
        latency: As above; to be changed only before anything is judged.
        calls: UNet calls of one generation of the reference steps.
        steps_of: Number of UNet calls -> number of steps.
        rungs: Rungs of the UNet.
        judged: All points so far, by schedule or peer, in the order in which they were judged.
        images: Number of images generated so far.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        prompts: Sequence[str],
        sampling: Sampling,
        metrics: Sequence[QualityMetric],
        latency: Callable[[Schedule], float] | None = None,
        steps: Sequence[int] = (),
    ) -> None:
        if getattr(pipe, "safety_checker", None) is not None:
            pipe.safety_checker = None  # a picture turned black says nothing about a schedule, and takes time
        self.pipe, self.prompts, self.sampling, self.metrics = remove_patch(pipe), list(prompts), sampling, metrics
        self.latency = latency
        self.rungs = len(Ladder(pipe.unet))
        self.steps_of = {num_calls(pipe, count): count for count in (*steps, sampling.steps)}
        self.calls = num_calls(pipe, sampling.steps)
        self.judged: dict[Schedule | Peer, Point] = {}
        self.images = 0

    @cached_property
    def baseline(self) -> Point:
        """Stock as a point; its images, which are generated now, are what fidelity is measured against."""
        warm_up = replace(self.sampling, steps=2)
        generate(self.pipe, self.prompts[: self.sampling.batch_size], warm_up)
        self.images += len(self.prompts)
        stock = generate(self.pipe, self.prompts, self.sampling)
        if not stock.images.isfinite().all():
            raise DatoError("stock's images are not finite numbers: give --dtype float32 or bfloat16")
        self._references = stock.images
        return self._point(Schedule.full(self.calls, rungs=self.rungs), stock, baseline=None)

    def __call__(self, contender: Schedule | Peer) -> Point:
        """Generate the contender's images and judge them, or return what is known of it."""
        if contender not in self.judged:
            stock = self.baseline
            result = self._generate(contender, self.prompts)
            self.images += len(self.prompts)
            self.judged[contender] = self._point(contender, result, stock)
        return self.judged[contender]

    def retime(
        self, contenders: Sequence[Schedule | Peer], rounds: int, progress: Callable[[], None] = lambda: None
    ) -> tuple[Point, list[Point]]:
        """Time stock and these again, side by side, and return stock's and their points with those times.

        In every round each of them generates the first batch of prompts once, one after the other, so that a machine
        that speeds up or slows down does so for all; a candidate that was lucky once in the search is found out. This
        measures also where latency was predicted; without rounds the points stay as they are.
        """
        turns = [None, *contenders]
        times: list[list[Generated]] = [[] for _ in turns]
        for _ in range(rounds):
            for contender, measured in zip(turns, times, strict=True):
                measured.append(self._generate(contender, self.prompts[: self.sampling.batch_size]))
                progress()
        points = [self.baseline, *(self.judged[c] for c in contenders)]
        if rounds:
            points = [_timed(point, measured) for point, measured in zip(points, times, strict=True)]
            stock = points[0].latency_ms
            points = [replace(point, speedup=stock / point.latency_ms) for point in points]
        baseline, *others = points
        return baseline, others

    def images_of(self, contender: Schedule | Peer | None, count: int) -> Tensor:
        """The images (count, 3, H, W) of a contender (None: stock) for the first prompts, to be looked at."""
        return self._generate(contender, self.prompts[:count]).images

    def _generate(self, contender: Schedule | Peer | None, prompts: Sequence[str]) -> Generated:
        if contender is None:
            return generate(self.pipe, prompts, self.sampling)
        schedule = contender.schedule if isinstance(contender, Peer) else contender
        if len(schedule) not in self.steps_of:
            known = ", ".join(map(str, sorted(self.steps_of)))
            raise DatoError(f"a schedule of {len(schedule)} calls cannot be judged here; generations have {known}")
        sampling = replace(self.sampling, steps=self.steps_of[len(schedule)])
        if isinstance(contender, Peer):
            running = contender.apply(self.pipe)
        elif is_stock(schedule):
            running = contextlib.nullcontext()  # stock with fewer steps is stock: nothing of ours may cost it time
        else:
            running = patched(self.pipe, schedule)
        with running:
            return generate(self.pipe, prompts, sampling)

    def _point(self, contender: Schedule | Peer, result: Generated, baseline: Point | None) -> Point:
        schedule = contender.schedule if isinstance(contender, Peer) else contender
        scores = {m.name: m(result.images, self.prompts, self._references) for m in self.metrics}
        measured = statistics.median(result.latency_ms)
        metrics = {**scores, "unet_ms": statistics.median(result.unet_ms), "measured_ms": measured}
        known = "measured_ms"
        if self.latency is not None and contender is schedule:
            known = "table_ms"
            metrics[known] = self.latency(schedule)
        # A speed-up is a ratio of two times of one kind.
        speedup = 1.0 if baseline is None else baseline.metrics[known] / metrics[known]
        steps, sampler = self.steps_of[len(schedule)], sampler_name(self.pipe.scheduler)
        return Point(schedule, scores[self.metrics[0].name], metrics[known], speedup, metrics, steps, sampler)


def _timed(point: Point, measured: Sequence[Generated]) -> Point:
    """The point with the medians of these measurements."""
    latency = statistics.median(g.latency_ms[0] for g in measured)
    unet = statistics.median(g.unet_ms[0] for g in measured)
    return replace(point, latency_ms=latency, metrics={**point.metrics, "unet_ms": unet, "measured_ms": latency})
