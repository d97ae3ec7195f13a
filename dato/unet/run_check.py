"""Check whether a run has the conditions that its schedule was searched under."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from dato import emoji_sd
from dato.hub.names import cached_repository
from dato.point import Point
from dato.samplers import SAMPLERS, sampler_name


def differences(point: Point, pipe: Any, sample: Tensor, calls: int | None) -> list[str]:
    """Return how a run differs from the search, one line for each difference. Conditions that are not known are equal.

    Args:
        point: The point of a front that runs.
        pipe: The pipeline that runs it.
        sample: (B, C, H, W) the UNet's input.
        calls: The sampler's number of UNet calls; None if it is not known.
    """
    searched, found = point.conditions, []
    model, searched_model = _name(getattr(pipe, "name_or_path", None)), _name(searched.get("model"))
    if None not in (model, searched_model) and model != searched_model:
        found.append(f"model {model} instead of {searched_model}")
    factor = getattr(pipe, "vae_scale_factor", 8)
    height, width = (size * factor for size in sample.shape[-2:])
    searched_size = searched.get("height"), searched.get("width")
    if None not in searched_size and searched_size != (height, width):
        found.append(f"{width} x {height} pixels instead of {searched_size[1]} x {searched_size[0]}")
    if calls is not None and calls != len(point.schedule):
        steps = point.steps or searched.get("steps")
        hint = "" if steps is None else f" (num_inference_steps={steps})"
        found.append(f"{calls} UNet calls instead of {len(point.schedule)}{hint}, so the schedule is resampled")
    sampler, searched_sampler = sampler_name(pipe.scheduler), point.scheduler or searched.get("scheduler_name")
    if searched_sampler is not None and sampler != searched_sampler:
        hint = f' (dato.set_scheduler(pipe, "{searched_sampler}"))' if searched_sampler in SAMPLERS else ""
        found.append(f"sampler {sampler} instead of {searched_sampler}{hint}")
    searched_scale, scale = searched.get("guidance_scale"), getattr(pipe, "_guidance_scale", None)
    if None not in (searched_scale, scale) and scale != searched_scale:
        found.append(f"guidance {scale:g} instead of {searched_scale:g}")
    return found


def _name(model: str | None) -> str | None:
    """Return a model's name: the last part of a path, or the id of a model in the hub's cache."""
    if not model:
        return None
    model = str(model)
    if model == str(emoji_sd.PIPE):
        return "emoji-sd"
    if cached := cached_repository(model):
        return cached
    return os.path.basename(model.rstrip("/\\")) if os.path.isabs(model) or os.path.exists(model) else model
