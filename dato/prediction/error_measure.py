"""Measuring a sensitivity model: stock, call by call, with partial and pruned calls on the side.

A second generation mostly runs nothing, so that its latents stray from stock's; its whole calls show how the network
answers that.
"""

from __future__ import annotations

import contextlib
import copy
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from torch import Tensor

from dato.errors import DatoError
from dato.generation.sampling import Sampling, generate
from dato.prediction.error_model import Sensitivity
from dato.prediction.sampler_response import VALUES, effective_weights, sampler_response
from dato.pruning import Pruning
from dato.samplers import num_calls
from dato.schedule import Schedule
from dato.unet.cache import Cache, Present
from dato.unet.ladder import Ladder
from dato.unet.patch import Patch, patched, remove_patch
from dato.utils.timing import Stopwatch

AGES = (1, 3, 10)  # five ages rank schedules no better
LENGTH = 128  # of a projection: squares of lengths come out with a relative deviation of (2 / LENGTH)^(1/2)


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
    """Measure the sensitivity model of a pipeline; any patch on it is taken off.

    It takes a stock generation in which every call is followed by its partial ones, one for each depth and age, and a
    generation that mostly runs nothing, which shows how the network answers errors in the latent. Forecasts cost
    nothing more.

    Args:
        pipe: The pipeline, on its device, with its sampler.
        prompts: One image each. They need not be those that schedules are judged by.
        sampling: How, as schedules are judged.
        depths: The depths to know; 0 and the whole UNet are known always.
        ratios: The prune ratios to know, at every one of these depths and the whole UNet.
        pruning: What these are meant with; None: the defaults.
        ages: The ages at which partial calls are measured; between them errors are interpolated.

    Raises:
        DatoError: if a depth does not exist, or ages are not whole numbers above 0.
    """
    remove_patch(pipe)
    rungs, calls = len(Ladder(pipe.unet)), num_calls(pipe, sampling.steps)
    if not all(0 <= depth <= rungs for depth in depths):
        raise DatoError(f"sensitivity: the depths of this UNet are 0 to {rungs}, not {sorted(set(depths))}")
    if not ages or any(int(age) != age or age < 1 for age in ages):
        raise DatoError(f"sensitivity: ages are whole numbers above 0, not {list(ages)}")
    if not prompts:
        raise DatoError("sensitivity: it takes at least one prompt")
    between = tuple(sorted({*depths} - {0, rungs}))
    ages = tuple(sorted({min(int(age), calls) for age in ages}))
    pruning, ratios = pruning or Pruning(), sorted({*ratios} - {0})

    # Most calls return an earlier prediction, so that the latents stray; the whole ones in between show the answer.
    straying = Schedule.uniform(calls, max(2, calls // 8), 0, rungs=rungs)
    whole = [call for call, depth in enumerate(straying.depths) if depth == rungs]
    probing = Schedule.full(calls, rungs=rungs).with_ratios(max(ratios, default=0.0))
    probe = _Probe(pipe, replace(probing, pruning=pruning), between, ratios, ages)
    moved = np.zeros((2, calls))
    images, values, final = 0, 0, 0.0
    for start in range(0, len(prompts), sampling.batch_size):
        batch = list(prompts[start : start + sampling.batch_size])
        own = replace(sampling, seed=sampling.seed + start)
        probe.begin(len(batch), sampling.guidance_scale, seed=start)
        probe.attach()
        try:
            with _watched(pipe.unet, len(batch), sampling.guidance_scale) as stock:
                generate(pipe, batch, own)
        finally:
            probe.detach()
        with patched(pipe, straying), _watched(pipe.unet, len(batch), sampling.guidance_scale) as strayed:
            generate(pipe, batch, own)
        for call in whole:
            way, change = ((b - a).double().flatten() for a, b in zip(stock[call], strayed[call], strict=True))
            moved[:, call] += float(way @ change), float(way @ way)
        values += stock[0][1].numel()
        projection = _Projection(stock[0][1], seed=start)
        final = final + projection(_replayed(pipe.scheduler, sampling.steps, stock))
        if not images:
            chosen = torch.randperm(stock[0][0][0].numel(), generator=torch.Generator().manual_seed(0))[:VALUES]
            path = [(x[0].flatten().cpu()[chosen], p[0].flatten().cpu()[chosen]) for x, p in stock]
        images += len(batch)

    scales = sampler_response(pipe.scheduler, sampling.steps).scales
    beginning, predicted = path[0][0] / scales[0], torch.stack([p for _, p in path])
    response = sampler_response(pipe.scheduler, sampling.steps, beginning, predicted)
    known = [call for call in whole if moved[1, call] > 1e-9 * moved[1].max()]
    feedback = np.zeros(calls)
    if known:
        feedback = np.interp(range(calls), known, [moved[0, call] / moved[1, call] for call in known])
    predictions, partial, pruned = probe.projections()
    return Sensitivity(
        rungs=rungs,
        times=response.times,
        weights=effective_weights(response.latents, feedback * response.scales),
        feedback=feedback,
        final=(final / values**0.5).cpu().numpy(),
        ages=ages,
        predictions=predictions,
        partial=partial,
        pruned=pruned,
        pruning=pruning,
        unet_calls=probe.cost() + images * len(whole),
    )


def final_latent(pipe: DiffusionPipeline, prompts: Sequence[str], sampling: Sampling) -> np.ndarray:
    """(k,) `Sensitivity.final` of another number of steps: one stock generation of the same prompts."""
    remove_patch(pipe)
    values, final = 0, 0.0
    for start in range(0, len(prompts), sampling.batch_size):
        batch = list(prompts[start : start + sampling.batch_size])
        with _watched(pipe.unet, len(batch), sampling.guidance_scale) as stock:
            generate(pipe, batch, replace(sampling, seed=sampling.seed + start))
        values += stock[0][1].numel()
        final = final + _Projection(stock[0][1], seed=start)(_replayed(pipe.scheduler, sampling.steps, stock))
    return (final / values**0.5).cpu().numpy()


def _replayed(scheduler: SchedulerMixin, steps: int, seen: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The final latent, (images, C, h, w): the sampler run again on the predictions that it got."""
    own = copy.deepcopy(scheduler)
    own.set_timesteps(steps, device=seen[0][0].device)
    first = torch.ones(1, device=seen[0][0].device)
    x = seen[0][0] / copy.deepcopy(own).scale_model_input(first, own.timesteps[0])
    for (_, prediction), time in zip(seen, own.timesteps, strict=True):
        own.scale_model_input(x, time)
        x = own.step(prediction, time, x).prev_sample
    return x.float()


class _Probe(Patch):
    """Stock, call by call, with partial and pruned calls on the side."""

    def __init__(
        self,
        pipe: DiffusionPipeline,
        schedule: Schedule,
        depths: Sequence[int],
        ratios: Sequence[float],
        ages: Sequence[int],
    ) -> None:
        super().__init__(pipe.unet, schedule, pipe)
        self._depths, self._ratios, self._ages = depths, ratios, ages
        self._watches: defaultdict[tuple[int, float], Stopwatch] = defaultdict(lambda: Stopwatch(pipe.unet.device))
        self._sums: dict[tuple, Tensor | float] = {}  # what was measured -> projection
        self._images: list[int] = []
        self._values = 0

    def begin(self, images: int, guidance_scale: float, seed: int) -> None:
        """A generation of so many images begins; `seed` fixes what it is projected on."""
        self._images.append(images)
        self._guidance, self._seed = guidance_scale, seed
        self._past: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}  # call -> rung -> value and skip
        self._projection: _Projection | None = None

    def _run(self, depth: int, ratio: float, arguments: dict[str, Any]) -> Tensor:
        call, full = self._cache.present.call, len(self.ladder)
        kept = _Kept([depth - 1 for depth in self._depths])
        stock = self._timed(full, 0.0, kept, arguments)
        self._past[call] = kept.values
        self._past.pop(call - max(self._ages) - 1, None)
        truth = _guided(stock, self._images[-1], self._guidance)
        if self._projection is None:
            self._projection = _Projection(truth, seed=self._seed)
            self._values += truth.numel()
        self._add(("prediction", call), truth)
        for depth in self._depths:
            for age in sorted({min(age, call) for age in self._ages} - {0}):
                result = self._timed(depth, 0.0, self._stale(call, call - age, depth), arguments)
                self._add(("partial", call, depth, age), _guided(result, self._images[-1], self._guidance) - truth)
        for depth in (*self._depths, full):
            for ratio in self._ratios:
                result = self._timed(depth, ratio, self._stale(call, call, depth), arguments)
                self._add(("pruned", call, depth, ratio), _guided(result, self._images[-1], self._guidance) - truth)
        if self.pruner is not None:
            self.pruner.observe(stock)
        return stock

    def _timed(self, depth: int, ratio: float, cache: Cache, arguments: dict[str, Any]) -> Tensor:
        if self.pruner is not None:
            self.pruner.prepare(ratio, arguments["sample"], self._cache.present.time)
        watch = self._watches[depth, ratio]
        watch.start()
        result = self.ladder.run(depth, cache, **arguments)
        watch.stop()
        return result

    def _stale(self, call: int, source: int, depth: int) -> Cache:
        """A cache in which the call finds what the source computed; it takes in nothing."""
        cache = Cache()
        if depth < len(self.ladder):
            cache.begin(Present(source))
            cache.store(depth - 1, *self._past[source][depth - 1])
        cache.begin(Present(call, self._cache.present.time, 0, {}))
        return cache

    def _add(self, key: tuple, error: Tensor) -> None:
        self._sums[key] = self._sums.get(key, 0.0) + self._projection(error)

    def projections(self) -> tuple[np.ndarray, dict[int, np.ndarray], dict[tuple[int, float], np.ndarray]]:
        """`Sensitivity.predictions`, `.partial` and `.pruned`."""
        found = {key: (value / self._values**0.5).cpu().numpy() for key, value in self._sums.items()}
        calls = len(self.schedule)
        predictions = np.stack([found["prediction", call] for call in range(calls)])
        partial = {
            depth: np.stack(
                [
                    [found.get(("partial", call, depth, min(age, call)), predictions[0] * 0) for age in self._ages]
                    for call in range(calls)
                ]
            )
            for depth in self._depths
        }
        pruned = {
            (depth, ratio): np.stack([found["pruned", call, depth, ratio] for call in range(calls)])
            for depth in (*self._depths, len(self.ladder))
            for ratio in self._ratios
        }
        return predictions, partial, pruned

    def cost(self) -> float:
        """What all calls took, in whole calls of one image."""
        times = {kind: watch.read() for kind, watch in self._watches.items()}
        whole = statistics.median(times[len(self.ladder), 0.0])
        return statistics.mean(self._images) * sum(sum(each) for each in times.values()) / whole


class _Kept(Cache):
    """A cache that keeps what arrives at some rungs aside."""

    def __init__(self, rungs: Sequence[int]) -> None:
        super().__init__()
        self._rungs, self.values = rungs, {}

    def store(self, place: int, value: Tensor, skip: Tensor | None = None, *, copy: bool = False) -> None:
        if place in self._rungs:
            self.values[place] = (value.detach(), skip.detach())


class _Projection:
    """Random signs and sums: k numbers whose squared length is, in the mean, that of the tensor.

    Source: Charikar, Chen, Farach-Colton, "Finding frequent items in data streams" (2002), the count sketch.
    """

    def __init__(self, like: Tensor, seed: int, length: int = LENGTH) -> None:
        n, generator = like.numel(), torch.Generator().manual_seed(seed)
        self._length = length
        self._order = torch.randperm(n, generator=generator).to(like.device)
        self._signs = (torch.randint(0, 2, (n,), generator=generator) * 2.0 - 1).to(like.device)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.flatten()[self._order] * self._signs
        return F.pad(x, (0, -len(x) % self._length)).view(-1, self._length).sum(dim=0)


def _guided(prediction: Tensor, images: int, guidance_scale: float) -> Tensor:
    """(images, C, h, w) float32: what the sampler gets of the UNet's output, with guidance or without."""
    prediction = prediction.float()
    if prediction.shape[0] == images:
        return prediction
    unconditional, text = prediction.chunk(2)
    return unconditional + guidance_scale * (text - unconditional)


@contextlib.contextmanager
def _watched(unet: UNet2DConditionModel, images: int, guidance_scale: float) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Take note of each call's latents, as the network gets them, and guided prediction, (images, C, h, w) each."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(module: UNet2DConditionModel, args: tuple, kwargs: dict, output: Any) -> None:
        sample = args[0] if args else kwargs["sample"]
        prediction = _guided(output[0].detach(), images, guidance_scale)
        seen.append((sample[:images, : prediction.shape[1]].float().clone(), prediction.clone()))

    handle = unet.register_forward_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
