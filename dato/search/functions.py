"""The searches as Python functions, for any pipeline with a UNet that somebody has in memory."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError
from dato.evaluation.pool import InProcess
from dato.front import Front
from dato.generation.guidance import guidance_of_width
from dato.generation.prompts import split_prompts
from dato.samplers import sampler_name, set_scheduler
from dato.search.notebook_fingerprint import described, pipeline_digest
from dato.search.options import DepthSearch, JointSearch, RatioSearch, takes
from dato.search.prepare import (
    PreparedSearch,
    prepare_calls,
    prepare_ratios,
    ratio_bases,
    ratio_preset,
)
from dato.search.progress import SearchProgress, progress_of
from dato.search.run import run
from dato.search.run_folder import Folder
from dato.search.subject import as_it_was, subject_of
from dato.strategies import load_front


@takes(DepthSearch)
def search_depth(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    *,
    out: str | Path | None = None,
    progress: SearchProgress | bool | None = None,
    pipe_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Front:
    """Search cache-depth schedules: how many steps, and for each UNet call how deep to run; quality against latency.

    The pipeline is used as it is, with its LoRA, ControlNet and sampler. Only the preset paper gives it a sampler,
    PLMS. Afterwards it is as it was before, except that a schedule of `dato.apply_patch` is removed. Ctrl-C stops at
    once. What was judged is in the journal.

    Args:
        pipe: A pipeline with a `UNet2DConditionModel`, on its device.
        prompts: Prompts like those of your users. The guided presets (fast, thorough) need at least 4. They draw
            `images` prompts to judge candidates by, and `validation` others to validate the front by. The seed fixes
            which. The other presets use all prompts.
        out: The run's folder: pareto.json, journal.jsonl, stock's images and samples. If it holds the journal of the
            same search, that is resumed. None: a temporary folder, and nothing is kept.
        progress: How to show progress: True for a bar, an object of a subclass of `dato.search.SearchProgress`, or None
            for nothing.
        pipe_kwargs: Further arguments of every call of the pipeline, such as a ControlNet's `image`. They are the same
            for all prompts.
    {options}

    Returns:
        The front, as `dato.load_front` gives it.

    Raises:
        DatoError: if an option is not valid, `out` holds another search, or no candidate could be judged.

    Example:
        prompts = Path("my_prompts.txt").read_text().splitlines()
        front = dato.search.search_depth(pipe, prompts, steps=[10, 20], out="runs/mine")
        dato.apply_patch(pipe, front, speedup=3)
    """
    return _search_calls(pipe, prompts, DepthSearch(**options), out, progress, pipe_kwargs)


@takes(JointSearch)
def search_joint(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    *,
    out: str | Path | None = None,
    progress: SearchProgress | bool | None = None,
    pipe_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Front:
    """Search depths and prune ratios together: for each UNet call how deep to run and which share of tokens to prune.

    Token pruning differs from the papers' here, except with the preset paper. What a pruned token gets is its own past
    (`recover_from="past"`), similarities are local, and the blocks of a call share a choice. This is faster, and nearer
    to stock. Each layer that prunes keeps its last two outputs in memory. `dato.Pruning` has the numbers.

    The papers search depths first, then ratios on top of them (`search_depth`, `search_ratio`).

    Args:
        pipe: See `search_depth`, also for the next four.
        prompts: One image each. With `images`, as many of them are drawn.
        out: The run's folder.
        progress: How to show progress.
        pipe_kwargs: Further arguments of every call of the pipeline.
    {options}

    Returns:
        The front.

    Raises:
        DatoError: as `search_depth`.
    """
    return _search_calls(pipe, prompts, JointSearch(**options), out, progress, pipe_kwargs)


@takes(RatioSearch)
def search_ratio(
    pipe: DiffusionPipeline,
    front: Front | str | Path,
    prompts: Sequence[str] | None = None,
    *,
    out: str | Path | None = None,
    progress: SearchProgress | bool | None = None,
    pipe_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Front:
    """Search prune ratios on top of a front of cache-depth schedules: for each call the share of tokens to leave out.

    Token pruning differs from the papers' here, except with the preset paper. What a pruned token gets is its own past
    (`recover_from="past"`), similarities are local, and the blocks of a call share a choice. This is faster, and nearer
    to stock. Each layer that prunes keeps its last two outputs in memory. `dato.Pruning` has the numbers.

    Steps, guidance and size are those of the front. The pipeline is used as it is: see `search_depth`.

    Args:
        pipe: The pipeline, with the sampler that the front was searched with.
        front: The front, or what `dato.load_front` takes.
        prompts: One image each. With `images`, as many of them are drawn. None: the front's own, as many as the
            preset has.
        out: The run's folder; see `search_depth`.
        progress: How to show progress; see `search_depth`.
        pipe_kwargs: Further arguments of every call of the pipeline; see `search_depth`.
    {options}

    Returns:
        The front, of schedules with ratios.

    Raises:
        DatoError: as `search_depth`, or if the front is not for this pipeline.
    """
    chosen = RatioSearch(**options)
    source = "a front in memory" if isinstance(front, Front) else str(front)
    loaded = front if isinstance(front, Front) else load_front(front)
    conditions = loaded.conditions
    bases = ratio_bases(chosen, loaded, source)
    preset = ratio_preset(chosen, bases, conditions)
    if prompts is None:
        prompts = conditions.get("prompts", [])[: preset.images]
    elif chosen.images is not None:
        prompts, _ = split_prompts(_checked(prompts), chosen.images, 0, seed=chosen.seed)
    preset = replace(preset, images=len(prompts))
    _check_sampler(pipe, conditions)
    subject = subject_of(pipe, None, pipe_kwargs)
    prepared = prepare_ratios(chosen, subject, preset, _checked(prompts), bases, conditions)
    return _search(pipe, prepared, out, progress)


def _search_calls(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    options: DepthSearch | JointSearch,
    out: str | Path | None,
    progress: SearchProgress | bool | None,
    pipe_kwargs: Mapping[str, Any] | None,
) -> Front:
    preset = options.settings()
    scheduler = options.scheduler or (preset.scheduler if preset.for_all_models else None)
    subject = subject_of(pipe, scheduler, pipe_kwargs)
    prompts, validation = _checked(prompts), []
    if preset.validation or options.images is not None:
        prompts, validation = split_prompts(prompts, preset.images, preset.validation, seed=options.seed)
    preset = replace(preset, images=len(prompts), validation=len(validation))
    if options.guidance_scale is None and subject.model != EMBEDDED and not preset.for_all_models:
        preset = replace(preset, guidance_scale=guidance_of_width(pipe.unet.config.cross_attention_dim))
    return _search(pipe, prepare_calls(options, subject, preset, prompts, validation), out, progress)


def _search(
    pipe: DiffusionPipeline, prepared: PreparedSearch, out: str | Path | None, progress: SearchProgress | bool | None
) -> Front:
    """Run a search on a pipeline in this process."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()) if out is None else out)
        if Folder(folder).front.exists() and not Folder(folder).journal.exists():
            raise DatoError(f"`out`: {folder} holds a front without its journal, which cannot be resumed")
        stack.enter_context(as_it_was(pipe))
        set_scheduler(pipe, prepared.recipe.scheduler)
        pool = InProcess(prepared.recipe.evaluator_of(pipe))
        further: dict[str, Any] = {"pipeline_sha256": pipeline_digest(pipe)}
        if prepared.recipe.sampling.pipe_kwargs:
            further["pipe_kwargs"] = described(prepared.recipe.sampling.pipe_kwargs)
        remembered = json.loads(json.dumps(prepared.options.to_dict()))
        return run(prepared, pool, Folder(folder), remembered, progress_of(progress), further)


def _checked(prompts: Sequence[str]) -> list[str]:
    """Return the prompts as a list. Raise DatoError if there are none, or they are one string."""
    if isinstance(prompts, str) or not prompts:
        raise DatoError("`prompts`: give a list of at least one prompt")
    return list(prompts)


def _check_sampler(pipe: DiffusionPipeline, conditions: Mapping[str, Any]) -> None:
    """Raise DatoError if a front was searched with another sampler than the pipeline has."""
    searched = conditions.get("scheduler_name") or conditions.get("scheduler")
    names = sampler_name(pipe.scheduler), type(pipe.scheduler).__name__
    if searched is not None and searched not in names:
        raise DatoError(
            f"`front` was searched with the sampler {searched}, and the pipeline has {names[0]}: call "
            f"dato.set_scheduler(pipe, {searched!r}), or search depths with this sampler first"
        )
