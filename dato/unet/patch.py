"""The public functions that patch a pipeline or UNet with a schedule: apply_patch, remove_patch, patched."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dato.front import Front
from dato.point import Point
from dato.schedule import Schedule
from dato.unet.compiled import CompiledCalls
from dato.unet.patch_arguments import resolve_compile, resolve_control_nets, resolve_schedules
from dato.unet.targets import compile_settings, unet_of, wrapper_of
from dato.unet.unet_patch import ATTRIBUTE, Patch

T = TypeVar("T")


def apply_patch(
    pipe_or_unet: T,
    schedule: Schedule | Point | Front | str | Path | None = None,
    *,
    speedup: float | None = None,
    quality: float | None = None,
    prune_ratio: float | Sequence[float] | None = None,
    compile: bool | Mapping[str, Any] | CompiledCalls | None = None,
    controlnet: str | None = None,
    **pruning: Any,
) -> T:
    """Make a pipeline run a schedule. The pipeline is used as before; `remove_patch` undoes it bit for bit.

    Args:
        pipe_or_unet: A diffusers pipeline with a `UNet2DConditionModel`, a model of CompVis' code (`LatentDiffusion`,
            `DiffusionEngine`), or the UNet of one of them. If it is patched already, it gets the new schedule instead.
        schedule: A `Schedule`; a `Point` or `Front`; the path of a schedule or front as JSON; the name of a shipped
            one; or user/name on the Hugging Face hub. A front gives its knee, unless `speedup` or `quality` chooses
            another point. A point is meant for its number of steps and its sampler (`Point.kwargs`,
            `Point.scheduler`). None, with `speedup`: a rule makes a schedule for each run (see `dato.rule`), for its
            number of calls and its sampler. None, with `prune_ratio`: every call is whole and prunes, in a run
            of any number of calls.
        speedup: Choose the front's point of best quality that is at least this many times as fast as stock. Without a
            schedule: how many times fewer FLOPs the UNet takes in a run, above 1.
        quality: Choose the front's fastest point of at least this quality.
        prune_ratio: One ratio for all calls, instead of the schedule's ratios; or a list with one for each call.
            Without a schedule the list may also have one for each timestep of the sampler. Calls at the same timestep
            share an entry: 50 entries serve the 51 calls of 50 PLMS steps, whose second and third call are at the same
            timestep. A run of another length gets the list resampled.
        compile: True compiles each different call of the schedule with `torch.compile` when it is first run. A mapping
            holds keyword arguments of `torch.compile`, such as {"mode": "reduce-overhead"}. What was compiled is
            dropped with the patch, but a `dato.CompiledCalls` of this UNet can be used again. None: compile if the
            UNet is compiled already (`pipe.unet = torch.compile(pipe.unet)` or `pipe.unet.compile()`), in its mode.
        controlnet: "follow" runs the pipeline's ControlNets in each call only as deep as the UNet will read them. The
            image is the same (see `dato.unet.controlnet`). None runs them whole.
        **pruning: Fields of `Pruning`, or SiTo's names for them, instead of the schedule's settings.

    Returns:
        `pipe_or_unet`.

    Raises:
        DatoError: if it is not such a pipeline, or the schedule cannot be loaded or does not fit the UNet.

    Example:
        >>> from dato.generation.pipelines import load_pipeline
        >>> pipe = apply_patch(load_pipeline(), Schedule.uniform(4, 2, 1), prune_ratio=0.5)
        >>> pipe("rose on a white background", num_inference_steps=3).images[0].size  # 3 PLMS steps are 4 calls
        (64, 64)
        >>> current_schedule(pipe).entries[1]
        (1, 0.5, 0)
    """
    unet, pipe = unet_of(pipe_or_unet)
    point, schedules = resolve_schedules(unet, schedule, speedup, quality, prune_ratio, pruning)
    nets = resolve_control_nets(pipe, controlnet)
    present = patch_of(pipe_or_unet)
    if compile is None:
        compile = compile_settings(pipe_or_unet, None if present is None else present.compiled)
    compiled_calls, wrapper = resolve_compile(unet, compile), wrapper_of(pipe_or_unet)
    patch = Patch(unet, schedules, pipe, compiled_calls=compiled_calls, nets=nets, point=point, wrapper=wrapper)
    remove_patch(unet)
    patch.attach()
    return pipe_or_unet


def remove_patch(pipe_or_unet: T) -> T:
    """Remove the patch, if there is one: the pipeline is the stock one again, and the caches are freed.

    Example:
        >>> from dato.generation.pipelines import load_pipeline
        >>> pipe = apply_patch(load_pipeline(), "dato-published")
        >>> current_schedule(remove_patch(pipe)) is None
        True
    """
    patch = patch_of(pipe_or_unet)
    if patch is not None:
        patch.detach()
    return pipe_or_unet


def patch_of(pipe_or_unet: Any) -> Patch | None:
    """Return the patch of a pipeline or UNet; None if it has none."""
    return getattr(unet_of(pipe_or_unet)[0], ATTRIBUTE, None)


@contextlib.contextmanager
def patched(
    pipe_or_unet: T, schedule: Schedule | Point | Front | str | Path | None = None, **options: Any
) -> Iterator[T]:
    """Patch within a `with` block. After it, what was there before comes back: stock or another patch.

    The arguments are those of `apply_patch`.

    Example:
        >>> from dato.generation.pipelines import load_pipeline
        >>> pipe = load_pipeline()
        >>> with patched(pipe, Schedule.uniform(51, 3, 1)):
        ...     current_schedule(pipe).depths[:4]
        (12, 1, 1, 12)
        >>> current_schedule(pipe) is None
        True
    """
    unet, before = unet_of(pipe_or_unet)[0], patch_of(pipe_or_unet)
    apply_patch(pipe_or_unet, schedule, **options)
    try:
        yield pipe_or_unet
    finally:
        remove_patch(unet)
        if before is not None:
            before.attach()


def current_schedule(pipe_or_unet: Any) -> Schedule | None:
    """Return the schedule that a pipeline is patched with; None if it is the stock one.

    If a rule makes the schedules (`apply_patch(pipe, speedup=2.5)`), it is the one of the last run. Before the first
    run it is the one that a run of the pipeline's default number of steps will have. With `prune_ratio` and no schedule
    it is the one of the last run, too. Before the first run it has a call for each ratio that was given.
    """
    patch = patch_of(pipe_or_unet)
    return None if patch is None else patch.schedule
