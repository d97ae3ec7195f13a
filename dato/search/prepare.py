"""Prepare a search: check its options, and decide what judges candidates and what the front records."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError
from dato.evaluation.baselines import fewer_steps
from dato.evaluation.pool import Facts, Recipe
from dato.evaluation.validation import OTHER_NOISE
from dato.front import Front
from dato.generation.pipelines import loading_conditions
from dato.generation.sampling import Sampling
from dato.metrics import METRICS, setup_for
from dato.search.candidate_timing import HOW, mode_of
from dato.search.options import AnySearch, DepthSearch, JointSearch, RatioSearch
from dato.search.presets import RATIO_PRESETS, Preset
from dato.search.problem import Bases, SearchProblem, call_problem, ratio_problem
from dato.search.user_choices import floor_of, pick_point
from dato.search.warm_start import WarmStart

# Settings of the preset that a front's conditions hold outside of its entry on the search.
_ELSEWHERE = (
    *("batch_size", "steps", "orders", "forecast", "scheduler", "guidance_scale", "depths", "ratios", "rounds"),
    *("for_all_models", "quality"),
)
# Settings that only a search by generations has, and those that only a guided one has.
_BY_GENERATIONS = ("pop_size", "generations", "crossover", "mutation", "from_uniform", "advised")
_GUIDED = ("minutes", "speedups", "validation", "finalists", "model_images", "order_by_call")


@dataclass(frozen=True)
class Subject:
    """What has to be known of the searched pipeline before it is loaded.

    Attributes:
        model: Its name or place.
        device: For example "cuda".
        dtype: For example "float16".
        scheduler: The sampler to give it, a name of `dato.samplers.SAMPLERS`; None: the one that it has.
        config: As in `load_pipeline`.
        variant: As in `load_pipeline`.
        pipe_kwargs: As in `Sampling`.
    """

    model: str
    device: str
    dtype: str
    scheduler: str | None = None
    config: str | None = None
    variant: str | None = None
    pipe_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PreparedSearch:
    """A search that is ready to run.

    Attributes:
        kind: "depth", "ratio" or "joint".
        options: What was asked for.
        preset: Settings of the search.
        recipe: What judges candidates.
        problem: Makes the problem, once the pipeline is known.
        timing: "table" or "measured".
        metric_files: What metrics are made from, by the names of `Setup`, if the user gave it.
    """

    kind: str
    options: AnySearch
    preset: Preset
    recipe: Recipe
    problem: Callable[[Facts], SearchProblem]
    timing: str
    metric_files: Mapping[str, str] = field(default_factory=dict)

    @property
    def floor(self) -> float | None:
        """The least quality that counts, as `Point.quality` has it."""
        return floor_of(self.recipe.metrics[0], self.preset.min_quality)

    def conditions(self, facts: Facts, problem: SearchProblem) -> dict[str, Any]:
        """Return what is needed to trust and repeat the search, except what the search itself finds out."""
        recipe, sampling = self.recipe, self.recipe.sampling
        elsewhere = (*_ELSEWHERE, *(_GUIDED if self.preset.minutes is None else _BY_GENERATIONS))
        settings = {name: value for name, value in asdict(self.preset).items() if name not in elsewhere}
        if "speedups" in settings:
            settings["speedups"] = list(settings["speedups"])  # as JSON gives it back
        asked = {"kind": self.kind, "seed": self.options.seed}
        return {
            "model": recipe.model,
            **loading_conditions(recipe.config, recipe.variant),
            "dtype": recipe.dtype,
            **sampling_conditions(facts, sampling, recipe.prompts),
            **self._of_validation(),
            "batch_size": sampling.batch_size,
            **({"compiled": True} if recipe.compile else {}),
            "safety_checker": False,
            "quality": recipe.metrics[0],
            **({"clip": None, "statistics": None} | dict(self.metric_files)),
            "latency": HOW[self._how_timed],
            "search": settings | dict(problem.settings) | asked,
        }

    @property
    def _how_timed(self) -> str:
        if self.timing == "measured" and self.recipe.validation:
            return "validated again" if self.preset.rounds else "validated"
        if self.timing == "measured":
            return "measured"
        return "table" if self.preset.rounds else "predicted"

    def _of_validation(self) -> dict[str, Any]:
        prompts, seed = list(self.recipe.validation), self.recipe.sampling.seed + OTHER_NOISE
        if not prompts:
            return {}
        return {"validation_prompts": prompts, "validation_seeds": [seed + i for i in range(len(prompts))]}


def sampling_conditions(facts: Facts, sampling: Sampling, prompts: Sequence[str]) -> dict[str, Any]:
    """Return what a front's conditions say of how its images were generated."""
    prompts = list(prompts)
    return {
        "height": facts.size[0],
        "width": facts.size[1],
        "scheduler": facts.scheduler,
        "scheduler_name": facts.scheduler_name,
        "steps": sampling.steps,
        "calls": facts.calls,
        "guidance_scale": sampling.guidance_scale,
        "prompts": prompts,
        "prompts_sha256": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
        "seeds": [sampling.seed + i for i in range(len(prompts))],
    }


def prepare_calls(
    options: DepthSearch | JointSearch,
    subject: Subject,
    preset: Preset,
    prompts: Sequence[str],
    validation: Sequence[str] = (),
) -> PreparedSearch:
    """Prepare a search of depths, or of depths and ratios together.

    Args:
        options: What is asked for.
        subject: The pipeline.
        preset: `options.settings()`, with the guidance scale that is meant.
        prompts: One image each.
        validation: One image each, for the finalists only.

    Raises:
        DatoError: if an option is not valid, or there is no front to begin from.
    """
    joint = isinstance(options, JointSearch)
    pruning = options.token_pruning(preset.guidance_scale) if joint else None
    sampling = Sampling(
        options.reference_steps or max(preset.steps),
        preset.guidance_scale,
        options.height,
        options.width,
        options.seed,
        options.batch_size or (preset.batch_size if subject.model == EMBEDDED else Sampling.batch_size),
        subject.pipe_kwargs,
    )
    warm_start = WarmStart() if options.warm_start is None else WarmStart.load(options.warm_start)
    problem = partial(call_problem, preset=preset, name=options.preset, pruning=pruning, warm_start=warm_start)
    prepared = _prepared(
        "joint" if joint else "depth", options, subject, preset, prompts, sampling, preset.quality, problem
    )
    return replace(prepared, recipe=replace(prepared.recipe, validation=tuple(validation)))


def ratio_bases(options: RatioSearch, front: Front, source: str) -> Bases:
    """Return what a search of ratios builds on: all points of a front, or the one that `options.pick` says."""
    points = front.points if options.pick is None else (pick_point(front, options.pick),)
    reference = front.conditions.get("steps", max(RATIO_PRESETS["quick"].steps))
    return Bases(points, front.rungs, reference, source, options.pick)


def ratio_preset(options: RatioSearch, bases: Bases, conditions: Mapping[str, Any]) -> Preset:
    """Return the settings of a search of ratios, with the front's steps and guidance."""
    preset = options.settings()
    return replace(
        preset,
        steps=tuple(sorted({bases.steps(point) for point in bases.points})),
        guidance_scale=conditions.get("guidance_scale", preset.guidance_scale),
    )


def prepare_ratios(
    options: RatioSearch,
    subject: Subject,
    preset: Preset,
    prompts: Sequence[str],
    bases: Bases,
    conditions: Mapping[str, Any],
) -> PreparedSearch:
    """Prepare a search of prune ratios.

    Args:
        options: What is asked for.
        subject: The pipeline.
        preset: By `ratio_preset`.
        prompts: One image each.
        bases: What to build on.
        conditions: Those of the front. They replace options that are not given.

    Raises:
        DatoError: if there are no ratios to choose from.
    """
    pruning = options.token_pruning(preset.guidance_scale)
    space = bases.space(preset.ratios, pruning)
    sampling = Sampling(
        bases.reference,
        preset.guidance_scale,
        conditions.get("height"),
        conditions.get("width"),
        options.seed,
        options.batch_size or conditions.get("batch_size", 2),
        subject.pipe_kwargs,
    )
    problem = partial(ratio_problem, bases=bases, space=space, name=options.preset, pruning=pruning)
    quality = preset.quality or conditions["quality"]
    return _prepared("ratio", options, subject, preset, prompts, sampling, quality, problem, conditions)


def _prepared(
    kind: str,
    options: AnySearch,
    subject: Subject,
    preset: Preset,
    prompts: Sequence[str],
    sampling: Sampling,
    quality: str,
    problem: Callable[[Facts], SearchProblem],
    conditions: Mapping[str, Any] | None = None,
) -> PreparedSearch:
    if quality not in METRICS:
        raise DatoError(f"unknown quality metric {quality!r}; known are {', '.join(METRICS)}")
    files = options.metric_files(conditions)
    timing = mode_of(options.latency, subject.device)
    # Fidelity needs no files. For a model other than the embedded one, CLIP is loaded only if the user names one.
    recorded = ["psnr", "ssim"] + (["clip-score"] if subject.model == EMBEDDED or "clip" in files else [])
    by_preset = "" if options.quality or not preset.quality else f"`preset` {options.preset} takes {quality}; "
    free = [name for name in recorded if name != quality and not (name == "clip-score" and "clip" in files)]
    recipe = Recipe(
        subject.model,
        subject.device,
        subject.dtype,
        subject.scheduler,
        tuple(prompts),
        sampling,
        (*preset.steps, *fewer_steps(sampling.steps, more=preset.minutes is not None)),
        tuple(dict.fromkeys([quality, *recorded])),
        setup_for(subject.model, files),
        preset.race or None,
        timing == "measured",
        subject.config,
        subject.variant,
        compile=options.compile,
        instead=f"{by_preset}`quality` {' or '.join(free)} needs no file",
    )
    return PreparedSearch(kind, options, preset, recipe, problem, timing, files)
