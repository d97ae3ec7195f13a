"""Many methods on many prompts: images, measurements and times, batch by batch.

One worker generates a batch of prompts with stock and then with every method, so speed-ups are ratios of times of the
same minute. Every image is measured beside stock's image from the same noise, before both are rounded to 8 bits. Each
batch is written to an image store, and what the store holds is not generated again.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from dato.errors import DatoError
from dato.evaluation.evaluator import Evaluator
from dato.evaluation.flaws import OUT_OF_MEMORY, check_stock, flaw
from dato.evaluation.methods import Method, stock_method
from dato.evaluation.pool import Facts, Pool, Recipe
from dato.experiments.image_store import Batch, ImageStore
from dato.generation.pipelines import loading_conditions
from dato.generation.sampling import Sampling
from dato.metrics import measured_with
from dato.schedule import Schedule
from dato.utils.images import png
from dato.utils.memory import peak_memory, survive_out_of_memory


def settings_of(recipe: Recipe, facts: Facts) -> dict[str, Any]:
    """Return what images and measurements depend on, apart from prompts, methods and metrics."""
    sampling = recipe.sampling
    return {
        "model": recipe.model,
        **loading_conditions(recipe.config, recipe.variant),
        "dtype": recipe.dtype,
        "height": facts.size[0],
        "width": facts.size[1],
        "scheduler": facts.scheduler_name or facts.scheduler,
        "steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        "seed": sampling.seed,
        "batch_size": sampling.batch_size,
        "hardware": facts.hardware,
        **measured_with(recipe.setup),
    }


def stock_of(facts: Facts) -> Method:
    """Return the unchanged pipeline, with the reference's number of steps."""
    return stock_method(Schedule.full(facts.calls, rungs=facts.rungs))


def fill(store: ImageStore, pool: Pool, batch_size: int, memory: bool = True) -> Iterator[tuple[int, int]]:
    """Generate what an image store lacks. Yield (batches that are there, batches in all) first and after each batch.

    Args:
        store: The store. Its methods are what is generated.
        pool: Generates the images. Its prompts are the store's.
        batch_size: Prompts for each generation.
        memory: Whether to measure peak memory, too, in an additional generation of the first image.

    Raises:
        DatoError: if stock runs out of memory, or gives images that are not finite.
    """
    spans = store.spans(batch_size)
    metrics = pool.ask(_metric_names)
    lacking = {
        span: [method for name, method in store.methods.items() if not store.has(name, *span, metrics)]
        for span in spans
    }
    lacking = {span: methods for span, methods in lacking.items() if methods}
    there = len(spans) - len(lacking)
    yield there, len(spans)
    tasks = [(store.stock, methods, *span, memory) for span, methods in lacking.items()]
    for index, batches in pool.each(measure_batch, tasks):
        _, _, start, stop, _ = tasks[index]
        for name, batch in batches.items():
            store.put(name, start, stop, batch)
        there += 1
        yield there, len(spans)


def measure_batch(
    evaluator: Evaluator, stock: Method, methods: Sequence[Method], start: int, stop: int, memory: bool
) -> dict[str, Batch]:
    """Generate prompts `start` to `stop` with stock and with some methods, and measure the images.

    Args:
        evaluator: Generates the images.
        stock: The unchanged pipeline. It always runs, as the reference.
        methods: The methods to return batches of. Stock may be one of them.
        start: Index of the first prompt.
        stop: Index after the last prompt.
        memory: Whether to measure peak memory, too. It is measured with the very first prompt only.

    Returns:
        The name of each method -> its batch.

    Raises:
        DatoError: if stock runs out of memory, or gives images that are not finite.
    """
    evaluator.warm_up()
    prompts = evaluator.prompts[start:stop]
    sampling = replace(evaluator.sampling, seed=evaluator.sampling.seed + start)
    batches: dict[str, Batch] = {}
    reference: _Reference | None = None
    for method in dict.fromkeys([stock, *methods]):
        batches[method.name] = Batch(failure=OUT_OF_MEMORY)  # replaced below unless memory runs out
        with survive_out_of_memory(evaluator.pipe.unet.device):
            peak = _peak_bytes(evaluator, method, prompts[:1], sampling) if memory and start == 0 else None
            result = evaluator.generate(method, prompts, sampling)
            if reference is None:
                check_stock(result.images)
                reference = _Reference(result.images, median(result.latency_ms))
            batches[method.name] = Batch(
                {m.name: m.measure(result.images, prompts, reference.images) for m in evaluator.metrics},
                median(result.latency_ms),
                median(result.unet_ms),
                reference.latency_ms,
                peak,
                flaw(result.images, reference.images),
                tuple(map(png, result.images)),
            )
        if batches[stock.name].failure == OUT_OF_MEMORY:
            raise DatoError(f"stock is out of memory with {len(prompts)} images: lower the batch size")
    return {method.name: batches[method.name] for method in methods}


@dataclass(frozen=True)
class _Reference:
    """Stock's images (n, 3, H, W) of a batch, and its milliseconds per image."""

    images: Tensor
    latency_ms: float


def _peak_bytes(evaluator: Evaluator, method: Method, prompts: Sequence[str], sampling: Sampling) -> int:
    """Return the peak memory of a generation without the VAE.

    The VAE's decoder needs more memory than any UNet, and equally much for all methods. On a CPU it takes minutes.
    """
    with peak_memory(evaluator.pipe.unet.device) as peak:
        evaluator.generate(method, prompts, sampling, decode=False)
    return peak.bytes


def _metric_names(evaluator: Evaluator) -> list[str]:
    return [metric.name for metric in evaluator.metrics]


@dataclass(frozen=True)
class Row:
    """The results of one method over all prompts.

    Attributes:
        metrics: Metric -> value. Higher is better.
        latency_ms: Milliseconds per image, the median over whole batches.
        unet_ms: Milliseconds per image of the UNet's calls, the median over whole batches.
        speedup: The median over whole batches of stock's time in the same turn, divided by the method's time.
        peak_bytes: The most memory for one image, without the model's own and without the VAE. None: not measured.
        failure: What was wrong with its images. None: nothing.
    """

    metrics: dict[str, float]
    latency_ms: float
    unet_ms: float
    speedup: float
    peak_bytes: int | None
    failure: str | None = None


def rows(store: ImageStore, pool: Pool, batch_size: int) -> tuple[dict[str, Row], dict[str, str]]:
    """Return the results of all methods of a store that lacks nothing.

    The warnings of the metrics are given as warnings.

    Args:
        store: The store, filled.
        pool: What has the metrics.
        batch_size: Prompts of each batch.

    Returns:
        Name of a method -> its row; and name of a method that gave no images -> why.
    """
    names = pool.ask(_metric_names)
    results: dict[str, Row] = {}
    failures: dict[str, str] = {}
    for name in store.methods:
        batches = [store.get(name, *span) for span in store.spans(batch_size)]
        reasons = [batch.failure for batch in batches if batch.failure]
        if any(not batch.measured for batch in batches):
            failures[name] = reasons[0]
            continue
        measured = {metric: torch.cat([batch.measured[metric] for batch in batches]) for metric in names}
        values, cautions = pool.ask(summarised, measured)
        for caution in cautions:
            warnings.warn(caution, stacklevel=2)
        # The last batch may be smaller, and then takes another time per image.
        timed = batches[: len(store.prompts) // batch_size] or batches
        results[name] = Row(
            values,
            median(batch.latency_ms for batch in timed),
            median(batch.unet_ms for batch in timed),
            median(batch.stock_ms / batch.latency_ms for batch in timed),
            max((batch.peak_bytes for batch in batches if batch.peak_bytes), default=None),
            reasons[0] if reasons else None,
        )
    return results, failures


def summarised(evaluator: Evaluator, measured: Mapping[str, Tensor]) -> tuple[dict[str, float], list[str]]:
    """Return each metric's value over all images, and the metrics' warnings.

    A worker's own warnings would be printed in its process, where nobody sees them.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        values = {metric.name: metric.summary(measured[metric.name]) for metric in evaluator.metrics}
    return values, [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
