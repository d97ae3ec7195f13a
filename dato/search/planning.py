"""Plan one schedule of a given speed-up, without a search: an error model and dynamic programming only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from diffusers import DiffusionPipeline

from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError
from dato.evaluation.evaluator import Evaluator
from dato.evaluation.pool import facts_of
from dato.front import Front
from dato.generation.guidance import guidance_of_width
from dato.generation.sampling import Sampling
from dato.metrics import Setup, load_metric
from dato.prediction.error_measure import measure_sensitivity
from dato.prediction.error_model import Sensitivity
from dato.prediction.latency_measure import measure_table
from dato.prediction.latency_table import LatencyTable, is_stock
from dato.schedule import Schedule
from dato.search.adviser import Advice
from dato.search.candidate_timing import HOW
from dato.search.prepare import sampling_conditions
from dato.search.presets import FAST
from dato.search.rule_choice import rules_of
from dato.search.spaces import DepthSpace
from dato.search.subject import as_it_was, subject_of
from dato.utils.hardware import versions

DEPTHS, ORDERS = (0, 1), (0, 1)
IMAGES = 2  # to measure the error model with, and to check the plan with
PLANS = 60  # of the dynamic programming, from the fastest to stock


def plan(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    speedup: float = 3.0,
    *,
    steps: int = 50,
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    note: Callable[[str], None] = lambda text: None,
) -> Front:
    """Plan one schedule: the one of least predicted error that is at least `speedup` times as fast as stock.

    An error model is measured with about three images' worth of UNet calls. Schedules of dynamic programming
    (`dato.search.planner`) and all rules (`dato.evaluation.rules`) are compared by it. No schedule is tried but the one
    that is chosen: it is compared with stock on two images. A search (`search_depth`) finds better schedules.

    Args:
        pipe: A pipeline with a `UNet2DConditionModel`, on its device, with its sampler.
        prompts: At least two. The first ones are used.
        speedup: How many times as fast as stock, end to end.
        steps: Sampler steps of stock and of the plan.
        guidance_scale: Classifier-free guidance; None: the papers', or the embedded model's.
        height: Pixels; None: the model's own.
        width: Pixels; None: the model's own.
        seed: Fixes the noise of the images.
        note: Called with what is being done.

    Returns:
        A front of one point, with the quality (PSNR against stock) and speed-up that were measured.

    Raises:
        DatoError: if no schedule is so fast, there are fewer than two prompts, or predictions are not finite.

    Example:
        front = dato.search.plan(pipe, ["a cat", "a dog"], speedup=3)
        dato.apply_patch(pipe, front)
    """
    if isinstance(prompts, str) or len(prompts) < IMAGES:
        raise DatoError(f"`prompts`: give a list of at least {IMAGES} prompts")
    if not speedup > 1:
        raise DatoError(f"`speedup` {speedup:g}: it must be above 1")
    model = subject_of(pipe).model
    if guidance_scale is None:
        guidance_scale = (
            FAST.guidance_scale if model == EMBEDDED else guidance_of_width(pipe.unet.config.cross_attention_dim)
        )
    sampling = Sampling(steps, guidance_scale, height, width, seed, IMAGES)
    with as_it_was(pipe):
        return _planned(pipe, model, prompts[:IMAGES], sampling, speedup, note)


def _planned(
    pipe: DiffusionPipeline,
    model: str,
    prompts: Sequence[str],
    sampling: Sampling,
    speedup: float,
    note: Callable[[str], None],
) -> Front:
    """Measure, choose, and check the chosen schedule."""
    evaluator = Evaluator(pipe, prompts, sampling, [load_metric("psnr", Setup())], interleave=True)
    space = DepthSpace([evaluator.calls], evaluator.rungs, DEPTHS, ORDERS)
    note("Measuring the time of each kind of UNet call")
    table = measure_table(pipe, prompts, sampling, space.examples(), rounds=1)
    note("Measuring the error model")
    errors = measure_sensitivity(pipe, prompts, sampling, space.depths[:-1])
    chosen, predicted_ms = choose(space, errors, table, speedup)
    note("Comparing the plan with stock")
    judgement = evaluator.judge(chosen)
    if judgement.failure is not None:
        raise DatoError(f"the plan could not be run: {judgement.failure}")
    point = replace(judgement.point, metrics={**judgement.point.metrics, "table_ms": predicted_ms})
    conditions = _conditions(model, evaluator, sampling, prompts, speedup)
    return Front((point,), evaluator.baseline, {}, {**conditions, "latency_table": table.to_dict()})


def choose(space: DepthSpace, model: Sensitivity, table: LatencyTable, speedup: float) -> tuple[Schedule, float]:
    """Return the schedule of least predicted error among plans and rules that are fast enough, and its latency.

    Args:
        space: What to choose from.
        model: The error model.
        table: Predicts milliseconds per image.
        speedup: How many times as fast as stock it has to be.

    Raises:
        DatoError: if no schedule is so fast.
    """
    advice = Advice([model], table)
    candidates = list(dict.fromkeys([*advice.plans(space, PLANS), *rules_of(space)]))
    quality, latency = advice.guess_all(candidates)
    stock_ms = table.predict(Schedule.full(space.calls[-1], rungs=space.rungs))
    allowed = [i for i, ms in enumerate(latency) if stock_ms / ms >= speedup and not is_stock(candidates[i])]
    if not allowed:
        raise DatoError(f"no schedule of {space.calls[-1]} calls is {speedup:g} times as fast as stock: ask for less")
    best = max(allowed, key=lambda i: (quality[i], -latency[i]))
    return candidates[best], float(latency[best])


def _conditions(
    model: str, evaluator: Evaluator, sampling: Sampling, prompts: Sequence[str], speedup: float
) -> Mapping[str, Any]:
    facts = facts_of(evaluator)
    return {
        "model": model,
        "dtype": str(evaluator.pipe.unet.dtype).removeprefix("torch."),
        **sampling_conditions(facts, sampling, prompts),
        "batch_size": sampling.batch_size,
        "quality": "psnr",
        "latency": HOW["measured"],
        "hardware": facts.hardware,
        "versions": versions("dato", "torch", "diffusers", "transformers"),
        "search": {"kind": "plan", "speedup": speedup, "seed": sampling.seed},
    }
