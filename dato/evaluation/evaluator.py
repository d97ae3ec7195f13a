"""The evaluator: judges methods by the same prompts, the same noise, one pipeline and one set of metrics."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from dato.errors import DatoError
from dato.evaluation.flaws import OUT_OF_MEMORY, check_stock, flaw
from dato.evaluation.judgement import Judgement, failed
from dato.evaluation.methods import STOCK, Method, as_method, schedule_method
from dato.evaluation.racing import Rival, expected_if_beaten, rival_for
from dato.evaluation.safety_checker import without_safety_checker
from dato.evaluation.sample_pictures import sample_of
from dato.evaluation.stock import Stock
from dato.generation.sampling import Generated, Sampling, generate
from dato.metrics.base import MeanOverImages, Metric
from dato.point import Point
from dato.samplers import num_calls, sampler_name
from dato.schedule import Schedule
from dato.unet.compiled import CompiledCalls
from dato.unet.ladder import Ladder
from dato.unet.patch import remove_patch
from dato.utils.memory import survive_out_of_memory

T = TypeVar("T")
PROBE_STEPS = 4  # of the short stock generation that measures the machine's present speed


class Evaluator:
    """Turns methods into points. A method that was judged by a call of the evaluator is not judged again.

    Making an evaluator removes dato's patch from the pipeline. Stock's images are generated when they are first needed.
    A safety checker is off while images are generated here, and is back afterwards.

    Args:
        pipe: The pipeline, on its device.
        prompts: One image is generated for each.
        sampling: How images are generated. Its steps are those of the reference images and of the baseline.
        metrics: The first one is the objective (`Point.quality`). The others are recorded.
        latency: Predicts milliseconds per image of a schedule, as `LatencyTable.predict` does. The prediction is then
            the point's latency, so the same seed gives the same front. None: the latency is measured while the images
            are generated (end to end, the median over batches). Other packages' methods are always measured.
        steps: Further numbers of steps for which schedules may be judged. The length of a schedule says for which.
        race: The number of images after which a candidate may be given up (see `judge`). It is rounded up to whole
            batches where latencies are measured. None: every candidate gets all images.
        doubling: Whether a candidate that races may be given up again after twice, four times, ... as many images.
        interleave: Whether a short stock generation before each candidate measures the machine's present speed.
            Measured times are then scaled to the speed that the machine had when stock was measured. So all candidates
            are treated alike if a GPU slows down.
        compiled: Compiled calls of the pipeline's UNet to run schedules with, stock too; None: eager ones. A generation
            in which a call was compiled is repeated, because its time is no measure. Methods are run as they are.

    The metrics of a point hold `measured_ms`, `table_ms` if there is a prediction, and with `interleave` `probe_ms`,
    the time of the short generation.

    Attributes:
        latency: As above. It may be changed only before anything is judged.
        calls: UNet calls of one generation with the reference steps.
        steps_of: Number of UNet calls -> number of steps.
        rungs: Rungs of the UNet.
        stock_method: The unchanged pipeline with the reference steps.
        judged: All points so far, by `Method.identity`, in the order in which they were judged.
        images: Number of images generated so far.
        validation: An evaluator of the same pipeline with other prompts and noise, which no search sees; None if there
            is none (`dato.evaluation.validation`).
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        prompts: Sequence[str],
        sampling: Sampling,
        metrics: Sequence[Metric],
        latency: Callable[[Schedule], float] | None = None,
        steps: Sequence[int] = (),
        race: int | None = None,
        interleave: bool = False,
        doubling: bool = False,
        compiled: CompiledCalls | None = None,
    ) -> None:
        self.pipe, self.prompts, self.sampling, self.metrics = remove_patch(pipe), list(prompts), sampling, metrics
        self.latency, self.interleave, self.doubling, self.compiled = latency, interleave, doubling, compiled
        self.validation: Evaluator | None = None
        # A race takes a metric that judges each image by itself.
        self._race = race if race and isinstance(metrics[0], MeanOverImages) else None
        self.rungs = len(Ladder(pipe.unet))
        self.steps_of = {num_calls(pipe, count): count for count in (*steps, sampling.steps)}
        self.calls = num_calls(pipe, sampling.steps)
        self.stock_method = self._stock_of(sampling.steps)
        self.judged: dict[tuple[str, Schedule], Point] = {}
        self.images = 0
        self._stock: Stock | None = None
        self._warm = False

    @property
    def race(self) -> int | None:
        """After how many images a candidate may be given up; None: never."""
        # The time of an image depends on how many are generated together. Another size would be compiled, too.
        batch = self.sampling.batch_size if self.latency is None or self.compiled is not None else 1
        return None if self._race is None else -(-self._race // batch) * batch

    @property
    def stock(self) -> Stock:
        """Stock and its images. They are generated when this is first read."""
        if self._stock is None:
            probe = self._probe()
            self.images += len(self.prompts)
            result = self.generate(self.stock_method, self.prompts, self.sampling)
            check_stock(result.images)
            values = self._per_image(result.images, self.prompts, result.images)
            point = self._point(self.stock_method, result, result.images, values, probe, baseline=None)
            self._stock = Stock(point, result.images, sample_of(result.images))
        return self._stock

    @stock.setter
    def stock(self, stock: Stock) -> None:
        """Set stock to what was generated before, under the same conditions."""
        if len(stock.images) != len(self.prompts):
            raise DatoError(f"there are {len(stock.images)} images of stock and {len(self.prompts)} prompts")
        self._stock = stock

    @property
    def has_stock(self) -> bool:
        """Whether stock's images exist already."""
        return self._stock is not None

    @property
    def baseline(self) -> Point:
        """Stock as a point."""
        return self.stock.point

    def __call__(self, method: Schedule | Method) -> Point:
        """Return the point of a method. It is judged if it was not judged before."""
        method = as_method(method, self.compiled)
        if method.identity not in self.judged:
            self.judged[method.identity] = self.judge(method).point
        return self.judged[method.identity]

    def judge(self, method: Schedule | Method, rivals: Sequence[Rival] = ()) -> Judgement:
        """Generate a method's images and judge them.

        A method fails if it runs out of memory, or if its images are not finite or are black where stock's are not.

        Args:
            method: What to judge.
            rivals: Points of the front, if candidates race. A candidate is given up if it is slower than a rival and
                its first images are surely worse. It gets no further images, and its quality is the expected one.
        """
        method = as_method(method, self.compiled)
        stock, images = self.stock, self.images
        with survive_out_of_memory(self.pipe.unet.device):
            return self._judge(method, stock, rivals)
        return failed(method.schedule, OUT_OF_MEMORY, self.images - images)

    def _judge(self, method: Method, stock: Stock, rivals: Sequence[Rival]) -> Judgement:
        trial, expected = _Trial(self._probe()), None
        for start, stop in self._spans(rivals):
            reason = self._extend(trial, method, stock, start, stop)
            if reason is not None:
                return failed(method.schedule, reason, stop)
            if stop < len(self.prompts):
                rival = rival_for(self._latency_of(method, trial.parts[-1], trial.probe), rivals)
                expected = None if rival is None else expected_if_beaten(trial.values, rival)
                if expected is not None:
                    break
        result = _joined(trial.parts)
        references = stock.images[: len(result.images)]
        point = self._point(method, result, references, trial.values, trial.probe, stock.point)
        if not all(map(math.isfinite, point.metrics.values())):
            worst = next(name for name, value in point.metrics.items() if not math.isfinite(value))
            return failed(method.schedule, f"{worst} is no number", len(result.images))
        if expected is not None:
            point = self._expected(point, expected)
        return Judgement(point, tuple(trial.values), len(result.images), sample=sample_of(result.images))

    def _expected(self, point: Point, quality: float) -> Point:
        """Return the point of a candidate that was given up, with the expected quality.

        Other metrics are left out: means of its first images do not compare with means of all.
        """
        left_out = {metric.name for metric in self.metrics}
        metrics = {name: value for name, value in point.metrics.items() if name not in left_out}
        return replace(point, quality=quality, metrics={self.metrics[0].name: quality, **metrics})

    def _spans(self, rivals: Sequence[Rival]) -> list[tuple[int, int]]:
        """Return the ranges of prompts to generate one after the other: several if the candidate races, else one."""
        total = len(self.prompts)
        stops = [total]
        if rivals and self.race is not None and 0 < self.race < total:
            stops = [self.race]
            while self.doubling and 2 * stops[-1] < total:
                stops.append(2 * stops[-1])
            stops.append(total)
        return list(pairwise([0, *stops]))

    def _extend(self, trial: _Trial, method: Method, stock: Stock, start: int, stop: int) -> str | None:
        """Generate and measure the images of prompts `start` to `stop`. Return what is wrong with them, or None."""
        self.images += stop - start
        sampling = replace(self.sampling, seed=self.sampling.seed + start)
        prompts, references = self.prompts[start:stop], stock.images[start:stop]
        part = self.generate(method, prompts, sampling)
        trial.parts.append(part)
        reason = flaw(part.images, references)
        if reason is None:
            trial.values += self._per_image(part.images, prompts, references)
        return reason

    def generate(
        self, method: Schedule | Method, prompts: Sequence[str], sampling: Sampling, decode: bool = True
    ) -> Generated:
        """Generate images with a method, in as many steps as its schedule has calls for.

        The other arguments are those of `dato.generation.sampling.generate`.

        Raises:
            DatoError: if generations of this evaluator have another number of calls.
        """
        method = as_method(method, self.compiled)
        calls = len(method.schedule)
        if calls not in self.steps_of:
            lengths = ", ".join(map(str, sorted(self.steps_of)))
            raise DatoError(f"a schedule of {calls} calls cannot be judged here; generations have {lengths}")
        sampling = replace(sampling, steps=self.steps_of[calls])
        return self._generate(method, prompts, sampling, decode)

    def run(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Return `function(self, *arguments, **options)`, with the pipeline's safety checker off meanwhile."""
        with without_safety_checker(self.pipe):
            return function(self, *arguments, **options)

    def warm_up(self) -> None:
        """Generate once, so that the extra time of a first generation is not measured."""
        if not self._warm:  # an evaluator that was given stock's images has generated nothing yet
            self._generate_stock(2)
            self._warm = True

    def _stock_of(self, steps: int) -> Method:
        """Return stock in this number of steps."""
        whole = Schedule.full(num_calls(self.pipe, steps), rungs=self.rungs)
        return schedule_method(whole, STOCK, compiled=self.compiled)

    def _generate_stock(self, steps: int) -> Generated:
        """Generate the first batch with stock in this number of steps."""
        sampling = replace(self.sampling, steps=steps)
        return self._generate(self._stock_of(steps), self.prompts[: sampling.batch_size], sampling)

    def _generate(self, method: Method, prompts: Sequence[str], sampling: Sampling, decode: bool = True) -> Generated:
        before = None if self.compiled is None else self.compiled.count
        with method.apply(self.pipe), without_safety_checker(self.pipe):
            generated = generate(self.pipe, prompts, sampling, decode)
            if before is not None and self.compiled.count > before:
                generated = generate(self.pipe, prompts, sampling, decode)
        return generated

    def _probe(self) -> float | None:
        """Return milliseconds per image of a short stock generation; None if measured times are not scaled."""
        self.warm_up()
        if not self.interleave or self.latency is not None:
            return None
        return self._generate_stock(PROBE_STEPS).loop_ms[0]

    def _per_image(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> list[float]:
        """Return the objective of each of these images; nothing if it is not a mean over images."""
        metric = self.metrics[0]
        return metric.measure(images, prompts, references).tolist() if isinstance(metric, MeanOverImages) else []

    def _latency_of(self, method: Method, result: Generated, probe: float | None) -> float:
        if self.latency is not None and method.predictable:
            return self.latency(method.schedule)
        measured = statistics.median(result.latency_ms)
        if probe is None or self._stock is None:
            return measured
        return measured * self._stock.point.metrics["probe_ms"] / probe

    def _point(
        self,
        method: Method,
        result: Generated,
        references: Tensor,
        values: Sequence[float],
        probe: float | None,
        baseline: Point | None,
    ) -> Point:
        """Return the point of a method whose images, the objective's `values` and times are known."""
        prompts = self.prompts[: len(references)]
        objective, *others = self.metrics
        quality = statistics.fmean(values) if values else objective(result.images, prompts, references)
        metrics = {objective.name: quality} | {m.name: m(result.images, prompts, references) for m in others}
        metrics["unet_ms"] = statistics.median(result.unet_ms)
        metrics["measured_ms"] = statistics.median(result.latency_ms)
        if probe is not None:
            metrics["probe_ms"] = probe
        latency = self._latency_of(method, result, probe)
        # A speed-up is the ratio of two predicted or of two measured times.
        kind = "measured_ms"
        if self.latency is not None and method.predictable:
            metrics[kind := "table_ms"] = latency
        speedup = 1.0 if baseline is None else baseline.metrics[kind] / latency
        steps, sampler = self.steps_of[len(method.schedule)], sampler_name(self.pipe.scheduler)
        return Point(method.schedule, quality, latency, speedup, metrics, steps, sampler)


@dataclass
class _Trial:
    """What was generated and measured of one candidate so far.

    Attributes:
        probe: As `Evaluator._probe` returns.
        parts: The generations.
        values: The objective of each image; empty if it is not a mean over images.
    """

    probe: float | None
    parts: list[Generated] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


def _joined(parts: Sequence[Generated]) -> Generated:
    """Return several generations of one method as one."""

    def all_of(name: str) -> list[float]:
        return [value for part in parts for value in getattr(part, name)]

    return Generated(
        torch.cat([part.images for part in parts]), all_of("latency_ms"), all_of("unet_ms"), all_of("loop_ms")
    )


def precision_errors(evaluator: Evaluator, images: Tensor, prompts: Sequence[str]) -> dict[str, float]:
    """Return, for each metric that computes in half precision, how much that changes these images' values at most.

    Args:
        evaluator: It has the metrics.
        images: (n, 3, H, W) in [0, 1].
        prompts: n.
    """
    errors = {metric.name: metric.precision_error(images, prompts) for metric in evaluator.metrics}
    return {name: error for name, error in errors.items() if error}
