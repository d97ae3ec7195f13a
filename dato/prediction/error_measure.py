"""Measure an error model from two generations of each batch.

The first one is stock, and after each of its calls the partial and pruned calls are run as well. Most calls of the
second one are forecast, so its latents differ from stock's. Its whole calls show how the network's predictions change
with the latents.
"""

from __future__ import annotations

import contextlib
import copy
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from torch import Tensor

from dato.call import Call, place_read
from dato.errors import DatoError
from dato.generation.sampling import Sampling, generate
from dato.prediction.error_model import Sensitivity
from dato.prediction.sampler_response import VALUES, effective_weights, sampler_response
from dato.pruning import Pruning
from dato.samplers import num_calls
from dato.schedule import Schedule
from dato.unet.cache import Cache
from dato.unet.ladder import Ladder
from dato.unet.patch import patched, remove_patch
from dato.unet.run_schedule import GivenSchedule
from dato.unet.targets import unet_of
from dato.unet.unet_patch import Patch
from dato.utils.timing import Stopwatch

AGES = (1, 3, 10)  # five ages rank schedules no better
LENGTH = 64  # of an image's projection; the square of its length has a relative deviation of (2 / LENGTH)^(1/2)
# Every how many calls the deviating generations run the whole UNet. The images of a batch take turns. The network's
# reaction depends on the errors that it gets, so several kinds of errors are measured.
STRAYING = (4, 7, 3, 5)
SMOOTHING = 0.04  # share of the calls over which measured reactions are averaged
RIDGE = 1e-3  # of the reactions' least squares
KEPT = (0.0, 0.5, 0.7, 0.8, 0.85, 0.9, 0.94, 0.97, 0.99)  # shares of a reaction's difference that one call may keep

# Each call's latents, as the network gets them, and guided prediction, each (images, C, h, w).
Recording = list[tuple[Tensor, Tensor]]


def measure_sensitivity(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    sampling: Sampling,
    depths: Sequence[int],
    *,
    ratios: Sequence[float] = (),
    pruning: Pruning | None = None,
    ages: Sequence[int] = AGES,
) -> Sensitivity:
    """Measure the error model of a pipeline, and remove any patch from it.

    This takes a stock generation in which every call is followed by its partial calls, one for each depth and age, and
    a generation in which most calls are forecast. The second one shows how the network's predictions react to errors in
    the latent. Forecasts need no measurements of their own.

    Args:
        pipe: The pipeline, on its device, with its sampler.
        prompts: One image each. They can be other prompts than those that schedules are judged by. With four or more,
            predictions hold for other images too.
        sampling: How to generate, as schedules are judged.
        depths: The depths to measure. Depth 0 and the whole UNet need no measurement.
        ratios: The prune ratios to measure, at each of these depths and the whole UNet.
        pruning: The settings of token pruning that belong to the ratios; None: the defaults.
        ages: The ages at which partial calls are measured. Between them errors are interpolated.

    Raises:
        DatoError: if a depth does not exist, ages are not whole numbers above 0, or there is no prompt.
    """
    remove_patch(pipe)
    rungs, calls = len(Ladder(pipe.unet)), num_calls(pipe, sampling.steps)
    _check(prompts, depths, ages, rungs)
    partial = tuple(sorted({*depths} - {0, rungs}))
    ages = tuple(sorted({min(int(age), calls) for age in ages}))
    pruning, ratios = pruning or Pruning(), sorted({*ratios} - {0})

    straying = [_straying(calls, interval, rungs) for interval in STRAYING]
    feedback = _Feedback(calls)
    probing = Schedule.full(calls, rungs=rungs).with_ratios(max(ratios, default=0.0))
    probe = _Probe(pipe, replace(probing, pruning=pruning), partial, ratios, ages)
    final, path = _FinalLatent(pipe, sampling), None
    for start, batch, seeded in _batches(prompts, sampling):
        probe.begin(len(batch), sampling.guidance_scale)
        probe.attach()
        try:
            stock = _recorded(pipe, batch, seeded)
        finally:
            probe.detach()
        for part, schedule in _parts(len(batch), start // sampling.batch_size, straying):
            some = replace(seeded, seed=seeded.seed + part.start)
            with patched(pipe, schedule):
                strayed = _recorded(pipe, batch[part], some)
            feedback.add(schedule, [(x[part], p[part]) for x, p in stock], strayed)
        final.add(stock)
        path = path or _some_values(stock)

    scales = sampler_response(pipe.scheduler, sampling.steps).scales
    beginning, predicted = path[0][0] / scales[0], torch.stack([prediction for _, prediction in path])
    response = sampler_response(pipe.scheduler, sampling.steps, beginning, predicted)
    answers = feedback.feedback()
    predictions, partial_errors, pruned = probe.projections()
    return Sensitivity(
        rungs=rungs,
        times=response.times,
        weights=effective_weights(response.latents, answers * response.scales),
        feedback=answers,
        final=final.read(),
        ages=ages,
        predictions=predictions,
        partial=partial_errors,
        pruned=pruned,
        pruning=pruning,
        unet_calls=probe.cost() + feedback.unet_calls,
        images=len(prompts),
        latents=response.of_inputs,
        reactions=feedback.reactions(),
    )


def final_latent(pipe: DiffusionPipeline, prompts: Sequence[str], sampling: Sampling) -> np.ndarray:
    """Return `Sensitivity.final`, (k,), of another number of steps, from a stock generation of the same prompts."""
    remove_patch(pipe)
    final = _FinalLatent(pipe, sampling)
    for _, batch, seeded in _batches(prompts, sampling):
        final.add(_recorded(pipe, batch, seeded))
    return final.read()


def _check(prompts: Sequence[str], depths: Sequence[int], ages: Sequence[int], rungs: int) -> None:
    """Raise DatoError if a measurement is not possible."""
    if not all(0 <= depth <= rungs for depth in depths):
        raise DatoError(f"sensitivity: the depths of this UNet are 0 to {rungs}, not {sorted(set(depths))}")
    if not ages or any(int(age) != age or age < 1 for age in ages):
        raise DatoError(f"sensitivity: ages are whole numbers above 0, not {list(ages)}")
    if not prompts:
        raise DatoError("sensitivity: it takes at least one prompt")


def _batches(prompts: Sequence[str], sampling: Sampling) -> Iterator[tuple[int, list[str], Sampling]]:
    """Yield the index of each batch's first prompt, its prompts, and its sampling."""
    for start in range(0, len(prompts), sampling.batch_size):
        batch = list(prompts[start : start + sampling.batch_size])
        yield start, batch, replace(sampling, seed=sampling.seed + start)


def _parts(images: int, number: int, straying: Sequence[Schedule]) -> Iterator[tuple[slice, Schedule]]:
    """Divide a batch into parts, and yield each with the schedule that deviates for it.

    Args:
        images: Images of the batch.
        number: Which batch it is.
        straying: The schedules. A batch of fewer images goes on with the next ones.
    """
    count = min(images, len(straying))
    edges = [round(part * images / count) for part in range(count + 1)]
    for part, (start, stop) in enumerate(pairwise(edges)):
        yield slice(start, stop), straying[(number * count + part) % len(straying)]


def _recorded(pipe: DiffusionPipeline, batch: list[str], sampling: Sampling) -> Recording:
    """Generate a batch, and return what `_watched` has seen of it."""
    with _watched(pipe.unet, len(batch), sampling.guidance_scale) as recording:
        generate(pipe, batch, sampling, decode=False)
    return recording


def _some_values(recording: Recording) -> Recording:
    """Return a few values of the first image, always at the same positions: (VALUES,) tensors on the CPU."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(recording[0][0][0].numel(), generator=generator)[:VALUES]
    return [(x[0].flatten().cpu()[chosen], p[0].flatten().cpu()[chosen]) for x, p in recording]


def _straying(calls: int, interval: int, rungs: int) -> Schedule:
    """Return a schedule whose latents deviate from stock's: every `interval`-th call and the last one are whole."""
    return Schedule([rungs if t % interval == 0 or t == calls - 1 else 0 for t in range(calls)], None, 1, rungs)


class _Feedback:
    """Measures `Sensitivity.feedback` and `Sensitivity.reactions`.

    It compares stock generations with others that deviate from them.

    Args:
        calls: UNet calls of a generation.

    Attributes:
        unet_calls: What the deviating generations cost, in UNet calls of one image.
    """

    def __init__(self, calls: int) -> None:
        self._calls, self.unet_calls = calls, 0
        # (call, distance from the whole call before, (4, 4) scalar products of the deviations of the network's latent,
        # of its latent at the whole call before, of the prediction there, and of the prediction here)
        self._products: list[tuple[int, int, np.ndarray]] = []

    def add(self, straying: Schedule, stock: Recording, strayed: Recording) -> None:
        """Take in one batch, generated by stock and by the schedule `straying`."""
        whole = [call for call, depth in enumerate(straying.depths) if depth == straying.rungs]
        self.unet_calls += len(whole) * stock[0][1].shape[0]
        deviations = {
            call: [(b - a).double().flatten() for a, b in zip(stock[call], strayed[call], strict=True)]
            for call in whole
        }
        for before, call in pairwise(whole):
            latent, prediction = deviations[call]
            vectors = torch.stack([latent, *deviations[before], prediction])
            products = (vectors @ vectors.T).cpu().numpy()
            if products[0, 0] > 0:
                self._products.append((call, call - before, products))

    def _near(self) -> np.ndarray:
        """Return (T, n) the weights of the measurements at each call. Those of nearby calls count most."""
        calls = np.array([call for call, _, _ in self._products])
        distances = (np.arange(self._calls)[:, None] - calls) / max(1.0, SMOOTHING * self._calls)
        # Subtract the smallest, so that the nearest measurement counts even where none is near.
        weights = np.exp(-0.5 * (distances**2 - (distances**2).min(axis=1, keepdims=True)))
        return weights / weights.sum(axis=1, keepdims=True)

    def feedback(self) -> np.ndarray:
        """Return (T,) the change of a prediction for a change of 1 in the latent, averaged over nearby calls."""
        if not self._products:
            return np.zeros(self._calls)
        return self._near() @ np.array([products[0, 3] / products[0, 0] for _, _, products in self._products])

    def reactions(self) -> np.ndarray:
        """Return `Sensitivity.reactions` by least squares. Deviations count relative to the prediction's."""
        result = np.zeros((self._calls, 4))
        result[:, 3] = 1.0
        if not self._products:
            return result
        near, best = self._near(), np.full(self._calls, np.inf)
        for kept in KEPT:
            # In terms of x' (the latent before), x - x', and p - kept^distance p' (the prediction here and before).
            reduced = [_reduced(products, kept**distance) for _, distance, products in self._products]
            for call, sums in enumerate(np.tensordot(near, np.array(reduced), axes=1)):
                size = np.sqrt(np.maximum(np.diagonal(sums), 1e-30))
                system = (sums / np.outer(size, size))[:2, :2] + RIDGE * np.eye(2)
                weights = np.linalg.solve(system, sums[:2, 2] / size[:2]) / size[:2]
                left = sums[2, 2] - 2 * weights @ sums[:2, 2] + weights @ sums[:2, :2] @ weights
                if left < best[call]:
                    best[call] = left
                    result[call] = *weights, kept, np.sqrt(np.clip(left, 0, 1))
        return result


def _reduced(products: np.ndarray, kept: float) -> np.ndarray:
    """Return the products of (1 - kept) x', x - x' and p - kept p', relative to p's, from those of x, x', p', p."""
    change = np.array([[0, 1 - kept, 0, 0], [1, -1, 0, 0], [0, 0, -kept, 1]])
    return change @ products @ change.T / max(products[3, 3], 1e-30)


class _FinalLatent:
    """Measures `Sensitivity.final` from stock generations."""

    def __init__(self, pipe: DiffusionPipeline, sampling: Sampling) -> None:
        self._scheduler, self._steps = pipe.scheduler, sampling.steps
        self._projections: list[Tensor] = []

    def add(self, stock: Recording) -> None:
        """Take in one batch."""
        self._projections.append(_Projection(stock[0][1])(_replayed(self._scheduler, self._steps, stock)))

    def read(self) -> np.ndarray:
        """Return (k,) the projections of the final latents."""
        return torch.cat(self._projections).cpu().numpy()


def _replayed(scheduler: SchedulerMixin, steps: int, stock: Recording) -> Tensor:
    """Return the final latent, (images, C, h, w), by running the sampler again on the predictions that it got."""
    scheduler, device = copy.deepcopy(scheduler), stock[0][0].device
    scheduler.set_timesteps(steps, device=device)
    first = torch.ones(1, device=device)
    x = stock[0][0] / copy.deepcopy(scheduler).scale_model_input(first, scheduler.timesteps[0])
    for (_, prediction), time in zip(stock, scheduler.timesteps, strict=True):
        scheduler.scale_model_input(x, time)
        x = scheduler.step(prediction, time, x).prev_sample
    return x.float()


class _Probe(Patch):
    """Runs a stock generation, and after each of its calls the partial and pruned calls.

    Args:
        pipe: The pipeline.
        schedule: Whole calls, as many as the generation has, with the settings of pruning.
        depths: The partial depths to measure.
        ratios: The ratios to measure.
        ages: The ages to measure.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        schedule: Schedule,
        depths: Sequence[int],
        ratios: Sequence[float],
        ages: Sequence[int],
    ) -> None:
        super().__init__(unet_of(pipe)[0], GivenSchedule(schedule), pipe)
        self._depths, self._ratios, self._ages = depths, ratios, ages
        self._watches: defaultdict[tuple[int, float], Stopwatch] = defaultdict(lambda: Stopwatch(pipe.unet.device))
        self._projections: defaultdict[tuple, list[Tensor]] = defaultdict(list)  # by what was measured; of each batch
        self._images: list[int] = []

    def begin(self, images: int, guidance_scale: float) -> None:
        """Begin a generation of `images` images."""
        self._images.append(images)
        self._guidance = guidance_scale
        self._past: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}  # call -> rung -> value and skip
        self._projection: _Projection | None = None

    def _run(self, depth: int, ratio: float, cache: Cache, arguments: dict[str, Any]) -> Tensor:
        call, self._time = cache.call.index, cache.time
        kept = _Kept([place_read(depth, len(self.ladder)) for depth in self._depths])
        stock = self._timed(len(self.ladder), 0.0, kept, arguments)
        self._past[call] = kept.values
        self._past.pop(call - max(self._ages) - 1, None)
        truth = _guided(stock, self._images[-1], self._guidance)
        if self._projection is None:
            self._projection = _Projection(truth)
        self._add(("prediction", call), truth)
        self._measure_partial(call, truth, arguments)
        self._measure_pruned(call, truth, arguments)
        if self.pruner is not None:
            self.pruner.observe(stock)
        return stock

    def _measure_partial(self, call: int, truth: Tensor, arguments: dict[str, Any]) -> None:
        for depth in self._depths:
            for age in sorted({min(age, call) for age in self._ages} - {0}):
                result = self._timed(depth, 0.0, self._stale_cache(call, call - age, depth), arguments)
                self._add(("partial", call, depth, age), _guided(result, self._images[-1], self._guidance) - truth)

    def _measure_pruned(self, call: int, truth: Tensor, arguments: dict[str, Any]) -> None:
        for depth in (*self._depths, len(self.ladder)):
            for ratio in self._ratios:
                result = self._timed(depth, ratio, self._stale_cache(call, call, depth), arguments)
                self._add(("pruned", call, depth, ratio), _guided(result, self._images[-1], self._guidance) - truth)

    def _timed(self, depth: int, ratio: float, cache: Cache, arguments: dict[str, Any]) -> Tensor:
        if self.pruner is not None:
            self.pruner.prepare(ratio, arguments["sample"], self._time)
        watch = self._watches[depth, ratio]
        watch.start()
        result = self.ladder.run(depth, cache, **arguments)
        watch.stop()
        return result

    def _stale_cache(self, call: int, source: int, depth: int) -> Cache:
        """Return a cache in which a call finds what call `source` computed. It keeps nothing new."""
        cache = Cache()
        place = place_read(depth, len(self.ladder))
        if place is not None:
            cache.store(place, *self._past[source][place])
        cache.begin(Call(call, keep={}), self._time)
        return cache

    def _add(self, key: tuple, error: Tensor) -> None:
        self._projections[key].append(self._projection(error))

    def projections(self) -> tuple[np.ndarray, dict[int, np.ndarray], dict[tuple[int, float], np.ndarray]]:
        """Return `Sensitivity.predictions`, `.partial` and `.pruned`."""
        sums = {key: torch.cat(parts).cpu().numpy() for key, parts in self._projections.items()}
        calls = len(self.schedule)
        predictions = np.stack([sums["prediction", call] for call in range(calls)])
        partial = {
            depth: np.stack(
                [
                    [sums.get(("partial", call, depth, min(age, call)), predictions[0] * 0) for age in self._ages]
                    for call in range(calls)
                ]
            )
            for depth in self._depths
        }
        pruned = {
            (depth, ratio): np.stack([sums["pruned", call, depth, ratio] for call in range(calls)])
            for depth in (*self._depths, len(self.ladder))
            for ratio in self._ratios
        }
        return predictions, partial, pruned

    def cost(self) -> float:
        """Return what all calls took in time, in whole calls of one image."""
        times = {kind: watch.read() for kind, watch in self._watches.items()}
        whole = statistics.median(times[len(self.ladder), 0.0])
        return statistics.mean(self._images) * sum(sum(of_kind) for of_kind in times.values()) / whole


class _Kept(Cache):
    """A cache that only records what arrives at some rungs."""

    def __init__(self, rungs: Sequence[int]) -> None:
        super().__init__()
        self._rungs, self.values = rungs, {}

    def store(self, place: int, value: Tensor, skip: Tensor | None = None, *, copy: bool = False) -> None:
        if place in self._rungs:
            self.values[place] = (value.detach(), skip.detach())


class _Projection:
    """A random projection of each image to `LENGTH` numbers. Its squared length is on average the mean square.

    Source: Charikar, Chen, Farach-Colton, "Finding frequent items in data streams" (2002), the count sketch.

    Args:
        like: A tensor of the shape that is projected, (images, ...).
    """

    def __init__(self, like: Tensor) -> None:
        n, generator = like[0].numel(), torch.Generator().manual_seed(0)
        self._order = torch.randperm(n, generator=generator).to(like.device)
        self._signs = ((torch.randint(0, 2, (n,), generator=generator) * 2.0 - 1) / n**0.5).to(like.device)

    def __call__(self, x: Tensor) -> Tensor:
        """Return (images * LENGTH,): one block for each image."""
        x = x.flatten(1)[:, self._order] * self._signs
        return F.pad(x, (0, -x.shape[1] % LENGTH)).view(len(x), -1, LENGTH).sum(dim=1).flatten()


def _guided(prediction: Tensor, images: int, guidance_scale: float) -> Tensor:
    """Return what the sampler gets of the UNet's output, with guidance or without: (images, C, h, w) float32."""
    prediction = prediction.float()
    if prediction.shape[0] == images:
        return prediction
    unconditional, text = prediction.chunk(2)
    return unconditional + guidance_scale * (text - unconditional)


@contextlib.contextmanager
def _watched(unet: UNet2DConditionModel, images: int, guidance_scale: float) -> Iterator[Recording]:
    """Record each call of the UNet."""
    recording: Recording = []

    def note(module: UNet2DConditionModel, args: tuple, kwargs: dict, output: Any) -> None:
        sample = args[0] if args else kwargs["sample"]
        prediction = _guided(output[0].detach(), images, guidance_scale)
        recording.append((sample[:images, : prediction.shape[1]].float().clone(), prediction.clone()))

    handle = unet.register_forward_hook(note, with_kwargs=True)
    try:
        yield recording
    finally:
        handle.remove()
