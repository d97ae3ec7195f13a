"""Many methods on many prompts: images, measurements and times, batch by batch, each on the disk before it counts.

A batch of prompts is generated with stock and with every method in turn, by one worker, so that times are ratios of the
same minute, and every image is measured beside stock's from the same noise before it is rounded to 8 bits. What is on
the disk is not generated again.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from dato import emoji_sd
from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError
from dato.evaluation.evaluator import Evaluator, flaw, is_out_of_memory
from dato.evaluation.pool import Facts, Judges, Recipe
from dato.experiments.image_store import STOCK, Batch, Gallery
from dato.experiments.method_families import Contender
from dato.utils.images import png
from dato.utils.memory import peak_memory


def settings_of(recipe: Recipe, facts: Facts) -> dict[str, Any]:
    """What images and measurements depend on, apart from prompts, methods and metrics."""
    sampling, setup = recipe.sampling, recipe.setup
    return {
        "model": recipe.model,
        **({} if recipe.config is None else {"config": recipe.config}),
        "dtype": recipe.dtype,
        "height": sampling.height or facts.pixels,
        "width": sampling.width or facts.pixels,
        "scheduler": facts.scheduler_name or facts.scheduler,
        "steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        "seed": sampling.seed,
        "batch_size": sampling.batch_size,
        "hardware": facts.hardware,
        # By name: where the package lies says nothing.
        "clip": EMBEDDED if setup.clip == emoji_sd.CLIP else str(setup.clip),
        "image_reward": str(setup.image_reward),
        "image_reward_backend": setup.image_reward_backend,
        "pick_score": str(setup.pick_score),
        "inception": None if setup.inception is None else str(setup.inception),
    }


def fill(gallery: Gallery, judges: Judges, batch_size: int, memory: bool = True) -> Iterator[tuple[int, int]]:
    """Make what the gallery lacks; yields (batches that are there, batches in all) after each.

    Args:
        gallery: Where to; its methods are what is made.
        judges: Whose prompts are the gallery's.
        batch_size: Prompts for each generation.
        memory: Measure peak memory, too, in one generation more of the first image.

    Raises:
        DatoError: stock runs out of memory, or gives images that are not finite.
    """
    spans = gallery.spans(batch_size)
    names = judges.ask(_metric_names)
    lacking = {span: [name for name in gallery.methods if not gallery.has(name, *span, names)] for span in spans}
    lacking = {span: missing for span, missing in lacking.items() if missing}
    there = len(spans) - len(lacking)
    yield there, len(spans)
    tasks = [(gallery.methods, *span, missing, memory) for span, missing in lacking.items()]
    for number, batches in judges.each(assess, tasks):
        start, stop = tasks[number][1:3]
        for name, batch in batches.items():
            gallery.put(name, start, stop, batch)
        there += 1
        yield there, len(spans)


def assess(
    evaluator: Evaluator,
    methods: Mapping[str, Contender | None],
    start: int,
    stop: int,
    missing: Sequence[str],
    memory: bool,
) -> dict[str, Batch]:
    """Generate prompts `start` to `stop` with stock and with the missing methods, and measure what comes out."""
    evaluator.warm_up()
    prompts = evaluator.prompts[start:stop]
    sampling = replace(evaluator.sampling, seed=evaluator.sampling.seed + start)
    found: dict[str, Batch] = {}
    references, stock_ms = torch.zeros(0), 0.0
    for name in dict.fromkeys([STOCK, *missing]):
        try:
            peak = None
            if memory and start == 0:
                # Without the VAE, whose decoder holds more than any UNet and is everybody's. On a CPU it takes minutes.
                with peak_memory(evaluator.pipe.unet.device) as held:
                    evaluator.generate(methods[name], prompts[:1], sampling, decode=False)
                peak = held.bytes
            result = evaluator.generate(methods[name], prompts, sampling)
            if name == STOCK:
                references, stock_ms = result.images, median(result.latency_ms)
                if not references.isfinite().all():
                    raise DatoError("stock's images are not finite numbers: give --dtype float32 or bfloat16")
            measured = {m.name: m.measure(result.images, prompts, references) for m in evaluator.metrics}
        except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if name == STOCK:
                raise DatoError(f"stock is out of memory with {len(prompts)} images: lower --batch-size") from None
            found[name] = Batch(failure="out of memory")
            continue
        found[name] = Batch(
            measured,
            median(result.latency_ms),
            median(result.unet_ms),
            stock_ms,
            peak,
            flaw(result.images, references),
            tuple(map(png, result.images)),
        )
    return {name: found[name] for name in missing}


def _metric_names(evaluator: Evaluator) -> list[str]:
    return [metric.name for metric in evaluator.metrics]


@dataclass(frozen=True)
class Row:
    """What there is to say of one method.

    Attributes:
        metrics: By name, higher is better.
        latency_ms: Milliseconds per image, the median over whole batches.
        unet_ms: The same of the UNet's calls.
        speedup: The median over whole batches of stock's time, in that batch's turn, over the method's.
        peak_bytes: The most memory for one image, beyond the model's own and without the VAE; None: not measured.
        failure: What was wrong with its images; None: nothing.
    """

    metrics: dict[str, float]
    latency_ms: float
    unet_ms: float
    speedup: float
    peak_bytes: int | None
    failure: str | None = None


def rows(gallery: Gallery, judges: Judges, batch_size: int) -> tuple[dict[str, Row], dict[str, str]]:
    """All methods of a gallery that has everything: rows, and of those that gave no images why.

    Warns of what the metrics warn of.
    """
    names, found, failed = judges.ask(_metric_names), {}, {}
    for name in gallery.methods:
        batches = [gallery.get(name, *span) for span in gallery.spans(batch_size)]
        failures = [batch.failure for batch in batches if batch.failure]
        if any(not batch.measured for batch in batches):
            failed[name] = failures[0]
            continue
        measured = {metric: torch.cat([batch.measured[metric] for batch in batches]) for metric in names}
        values, cautions = judges.ask(summarised, measured)
        for caution in cautions:
            warnings.warn(caution, stacklevel=2)
        # The last one may be smaller, and takes another time for each image.
        timed = batches[: len(gallery.prompts) // batch_size] or batches
        found[name] = Row(
            values,
            median(batch.latency_ms for batch in timed),
            median(batch.unet_ms for batch in timed),
            median(batch.stock_ms / batch.latency_ms for batch in timed),
            max((batch.peak_bytes for batch in batches if batch.peak_bytes), default=None),
            failures[0] if failures else None,
        )
    return found, failed


def summarised(evaluator: Evaluator, measured: Mapping[str, Tensor]) -> tuple[dict[str, float], list[str]]:
    """Each metric of all images, and what it warns of (a worker's own warnings would be seen by nobody)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        values = {metric.name: metric.summary(measured[metric.name]) for metric in evaluator.metrics}
    return values, [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
