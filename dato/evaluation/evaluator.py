"""Judging schedules: the same prompts, the same noise, one pipeline and one set of metrics for all of them."""

from __future__ import annotations

import contextlib
import gc
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from dato.errors import DatoError
from dato.evaluation.judgement import Judgement, failed
from dato.evaluation.methods import Peer
from dato.evaluation.racing import Rival, expected_if_beaten, rival_for
from dato.generation.sampling import Generated, Sampling, generate
from dato.metrics.base import MeanOverImages, Metric
from dato.point import Point
from dato.prediction.latency_table import is_stock
from dato.samplers import num_calls, sampler_name
from dato.schedule import Schedule
from dato.unet.ladder import Ladder
from dato.unet.patch import patched, remove_patch
from dato.utils.images import picture

PROBE_STEPS = 4  # of the short stock generation that tells how fast the machine is just now
BLACK = 1 / 255
SAMPLE_PIXELS = 256  # a sample's images are at most so high


@dataclass(frozen=True)
class Stock:
    """What everything is compared with.

    Attributes:
        point: Stock as a point, the baseline.
        images: (n, 3, H, W) float32 in [0, 1], one for each prompt: the references of fidelity.
        sample: The first of them side by side, as a picture file.
    """

    point: Point
    images: Tensor
    sample: bytes


class Evaluator:
    """Turns schedules (and peers' methods) into points. What was asked for once as a point is not judged again.

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
        race: So many images, in whole batches, may be enough to give a candidate up (see `judge`); None: all get all.
        interleave: Before each candidate a short stock generation tells how fast the machine is just now, and measured
            times are scaled to the speed it had at stock's turn; so a GPU that throttles favours nobody.

    The metrics of a point hold both: `measured_ms`, and `table_ms` where there is a prediction; with `interleave`
    `probe_ms`, the time of the short generation.

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
        metrics: Sequence[Metric],
        latency: Callable[[Schedule], float] | None = None,
        steps: Sequence[int] = (),
        race: int | None = None,
        interleave: bool = False,
    ) -> None:
        if getattr(pipe, "safety_checker", None) is not None:
            pipe.safety_checker = None  # a picture turned black says nothing about a schedule, and takes time
        self.pipe, self.prompts, self.sampling, self.metrics = remove_patch(pipe), list(prompts), sampling, metrics
        self.latency, self.interleave = latency, interleave
        batch = sampling.batch_size
        # A race is decided between batches, and by a metric that judges each image by itself.
        self.race = None if race is None or not isinstance(metrics[0], MeanOverImages) else -(-race // batch) * batch
        self.rungs = len(Ladder(pipe.unet))
        self.steps_of = {num_calls(pipe, count): count for count in (*steps, sampling.steps)}
        self.calls = num_calls(pipe, sampling.steps)
        self.judged: dict[Schedule | Peer, Point] = {}
        self.images = 0
        self._stock: Stock | None = None
        self._warm = False

    @property
    def stock(self) -> Stock:
        """Stock and its images, which are generated when they are first asked for."""
        if self._stock is None:
            probe = self._probe()
            self.images += len(self.prompts)
            result = generate(self.pipe, self.prompts, self.sampling)
            if not result.images.isfinite().all():
                raise DatoError("stock's images are not finite numbers: give --dtype float32 or bfloat16")
            schedule = Schedule.full(self.calls, rungs=self.rungs)
            values = self._per_image(result.images, self.prompts, result.images)
            point = self._point(schedule, result, result.images, values, probe, baseline=None)
            self._stock = Stock(point, result.images, sample_of(result.images))
        return self._stock

    @stock.setter
    def stock(self, stock: Stock) -> None:
        """Take what was generated before, under the same conditions."""
        if len(stock.images) != len(self.prompts):
            raise DatoError(f"there are {len(stock.images)} images of stock and {len(self.prompts)} prompts")
        self._stock = stock

    @property
    def has_stock(self) -> bool:
        """Whether stock's images are there already."""
        return self._stock is not None

    @property
    def baseline(self) -> Point:
        """Stock as a point."""
        return self.stock.point

    def __call__(self, contender: Schedule | Peer) -> Point:
        """Generate the contender's images and judge them, or return what is known of it."""
        if contender not in self.judged:
            self.judged[contender] = self.judge(contender).point
        return self.judged[contender]

    def judge(self, contender: Schedule | Peer, rivals: Sequence[Rival] = ()) -> Judgement:
        """Generate the contender's images and judge them.

        One that runs out of memory, or gives images that are not finite or are black where stock's are not, has failed.

        Args:
            contender: What to judge.
            rivals: Where candidates race: points of the front. A contender that is slower than one of them and surely
                worse, by its first images, does not get the others, and its quality is what it would be expected to be.
        """
        stock, images = self.stock, self.images
        schedule = contender.schedule if isinstance(contender, Peer) else contender
        try:
            return self._judge(contender, schedule, stock, rivals)
        except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = "out of memory"
        gc.collect()
        if self.pipe.unet.device.type == "cuda":
            torch.cuda.empty_cache()
        return failed(schedule, reason, self.images - images)

    def _judge(
        self, contender: Schedule | Peer, schedule: Schedule, stock: Stock, rivals: Sequence[Rival]
    ) -> Judgement:
        probe = self._probe()
        parts, values, total, expected = [], [], len(self.prompts), None
        cut = self.race if rivals and self.race is not None and self.race < total else total
        for start, stop in ((0, cut), (cut, total)):
            if start == stop:
                continue
            self.images += stop - start
            sampling = replace(self.sampling, seed=self.sampling.seed + start)
            part = self.generate(contender, self.prompts[start:stop], sampling)
            parts.append(part)
            reason = flaw(part.images, stock.images[start:stop])
            if reason is not None:
                return failed(schedule, reason, stop)
            values += self._per_image(part.images, self.prompts[start:stop], stock.images[start:stop])
            if stop < total:
                rival = rival_for(self._latency_of(contender, part, probe), rivals)
                expected = None if rival is None else expected_if_beaten(values, rival)
                if expected is not None:
                    break
        result = _joined(parts)
        point = self._point(contender, result, stock.images[: len(result.images)], values, probe, stock.point)
        if not all(map(math.isfinite, point.metrics.values())):
            worst = next(name for name, value in point.metrics.items() if not math.isfinite(value))
            return failed(schedule, f"{worst} is no number", len(result.images))
        if expected is not None:
            point = replace(point, quality=expected)
        return Judgement(point, tuple(values), len(result.images), sample=sample_of(result.images))

    def retime(
        self, contenders: Mapping[Schedule | Peer, Point], rounds: int, progress: Callable[[], None] = lambda: None
    ) -> tuple[Point, list[Point]]:
        """Time stock and these again, side by side, and return stock's and their points with those times.

        In every round each of them generates the first batch of prompts once, one after the other, so that a machine
        that speeds up or slows down does so for all; a candidate that was lucky once in the search is found out. This
        measures also where latency was predicted; without rounds the points stay as they are.
        """
        self.warm_up()
        turns = [None, *contenders]
        times: list[list[Generated]] = [[] for _ in turns]
        for _ in range(rounds):
            for contender, measured in zip(turns, times, strict=True):
                measured.append(self.generate(contender, self.prompts[: self.sampling.batch_size], self.sampling))
                progress()
        points = [self.baseline, *contenders.values()]
        if rounds:
            points = [_timed(point, measured) for point, measured in zip(points, times, strict=True)]
            stock = points[0].latency_ms
            points = [replace(point, speedup=stock / point.latency_ms) for point in points]
        baseline, *others = points
        return baseline, others

    def generate(
        self, contender: Schedule | Peer | None, prompts: Sequence[str], sampling: Sampling, decode: bool = True
    ) -> Generated:
        """Generate images with a contender (None: stock), in as many steps as it has calls for.

        Arguments as for `dato.generation.sampling.generate`.

        Raises:
            DatoError: if generations here have another number of calls.
        """
        if contender is None:
            return generate(self.pipe, prompts, sampling, decode)
        schedule = contender.schedule if isinstance(contender, Peer) else contender
        if len(schedule) not in self.steps_of:
            known = ", ".join(map(str, sorted(self.steps_of)))
            raise DatoError(f"a schedule of {len(schedule)} calls cannot be judged here; generations have {known}")
        sampling = replace(sampling, steps=self.steps_of[len(schedule)])
        if isinstance(contender, Peer):
            running = contender.apply(self.pipe)
        elif is_stock(schedule):
            running = contextlib.nullcontext()  # stock with fewer steps is stock: nothing of ours may cost it time
        else:
            running = patched(self.pipe, schedule)
        with running:
            return generate(self.pipe, prompts, sampling, decode)

    def warm_up(self) -> None:
        """Generate once, so that what is loaded and chosen at the first generation is not timed."""
        if not self._warm:  # whoever was given stock's images has generated nothing yet
            generate(self.pipe, self.prompts[: self.sampling.batch_size], replace(self.sampling, steps=2))
            self._warm = True

    def _probe(self) -> float | None:
        self.warm_up()
        if not self.interleave or self.latency is not None:
            return None
        short = replace(self.sampling, steps=PROBE_STEPS)
        return generate(self.pipe, self.prompts[: self.sampling.batch_size], short).loop_ms[0]

    def _per_image(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> list[float]:
        """The objective for each of these images; nothing if it is no mean over images."""
        metric = self.metrics[0]
        return metric.measure(images, prompts, references).tolist() if isinstance(metric, MeanOverImages) else []

    def _latency_of(self, contender: Schedule | Peer, result: Generated, probe: float | None) -> float:
        if self.latency is not None and isinstance(contender, Schedule):
            return self.latency(contender)
        measured = statistics.median(result.latency_ms)
        if probe is None or self._stock is None:
            return measured
        return measured * self._stock.point.metrics["probe_ms"] / probe

    def _point(
        self,
        contender: Schedule | Peer,
        result: Generated,
        references: Tensor,
        values: Sequence[float],
        probe: float | None,
        baseline: Point | None,
    ) -> Point:
        schedule = contender.schedule if isinstance(contender, Peer) else contender
        prompts = self.prompts[: len(references)]
        objective, *others = self.metrics
        quality = statistics.fmean(values) if values else objective(result.images, prompts, references)
        metrics = {objective.name: quality} | {m.name: m(result.images, prompts, references) for m in others}
        metrics["unet_ms"] = statistics.median(result.unet_ms)
        metrics["measured_ms"] = statistics.median(result.latency_ms)
        if probe is not None:
            metrics["probe_ms"] = probe
        latency = self._latency_of(contender, result, probe)
        # A speed-up is a ratio of two times of one kind.
        known = "measured_ms"
        if self.latency is not None and isinstance(contender, Schedule):
            metrics[known := "table_ms"] = latency
        speedup = 1.0 if baseline is None else baseline.metrics[known] / latency
        steps, sampler = self.steps_of[len(schedule)], sampler_name(self.pipe.scheduler)
        return Point(schedule, quality, latency, speedup, metrics, steps, sampler)


def sample_of(images: Tensor, count: int = 4) -> bytes:
    """The first `count` of images (n, 3, H, W) in [0, 1] side by side, as a WebP file; large ones are made smaller."""
    strip = torch.cat(list(images[:count].clamp(0, 1)), dim=2)
    sample = picture(strip)
    if sample.height > SAMPLE_PIXELS:
        width = sample.width * SAMPLE_PIXELS // sample.height
        sample = sample.resize((width, SAMPLE_PIXELS), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    sample.save(data, "webp", lossless=sample.height < 128, quality=90)
    return data.getvalue()


def _joined(parts: Sequence[Generated]) -> Generated:
    """Generations of one contender, put together."""

    def all_of(name: str) -> list[float]:
        return [value for part in parts for value in getattr(part, name)]

    return Generated(
        torch.cat([part.images for part in parts]), all_of("latency_ms"), all_of("unet_ms"), all_of("loop_ms")
    )


def flaw(images: Tensor, references: Tensor) -> str | None:
    """What makes these images (n, 3, H, W) unfit to be judged, or None."""
    if not images.isfinite().all():
        return "its images are not finite numbers"
    black = images.flatten(1).amax(1) < BLACK
    if (black & (references.flatten(1).amax(1) >= BLACK)).any():
        return "it gives black images"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an exception says."""
    # A CPU's allocator has no exception of its own.
    return not isinstance(error, RuntimeError) or any(
        words in str(error)
        for words in ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")
    )


def _timed(point: Point, measured: Sequence[Generated]) -> Point:
    """The point with the medians of these measurements."""
    latency = statistics.median(g.latency_ms[0] for g in measured)
    unet = statistics.median(g.unet_ms[0] for g in measured)
    return replace(point, latency_ms=latency, metrics={**point.metrics, "unet_ms": unet, "measured_ms": latency})


def precision_errors(evaluator: Evaluator, images: Tensor, prompts: Sequence[str]) -> dict[str, float]:
    """For each metric that computes in half precision, how much that changes on these images at most."""
    errors = {metric.name: metric.precision_error(images, prompts) for metric in evaluator.metrics}
    return {name: error for name, error in errors.items() if error}
