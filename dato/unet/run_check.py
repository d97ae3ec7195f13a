"""How far a run is from the conditions that a schedule was searched under."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from dato import emoji_sd
from dato.hub.names import cached_repository
from dato.point import Point
from dato.samplers import SAMPLERS, sampler_name


def differences(point: Point, pipe: Any, sample: Tensor, calls: int | None) -> list[str]:
    """What a run has otherwise than the search had it, one line each; nothing where that is not known.

    Args:
        point: What runs, of a front.
        pipe: The pipeline that runs it.
        sample: (B, C, H, W) the UNet's input.
        calls: UNet calls of the sampler.
    """
    searched, found = point.conditions, []
    model, own = searched.get("model"), _name(getattr(pipe, "name_or_path", None))
    if model is not None and own is not None and _name(model) != own:
        found.append(f"model {own} instead of {_name(model)}")
    factor = getattr(pipe, "vae_scale_factor", 8)
    height, width = (size * factor for size in sample.shape[-2:])
    wanted = searched.get("height"), searched.get("width")
    if None not in wanted and wanted != (height, width):
        found.append(f"{width} x {height} pixels instead of {wanted[1]} x {wanted[0]}")
    if calls is not None and calls != len(point.schedule):
        steps = point.steps or searched.get("steps")
        hint = "" if steps is None else f" (num_inference_steps={steps})"
        found.append(f"{calls} UNet calls instead of {len(point.schedule)}{hint}, so the schedule is resampled")
    sampler, known = sampler_name(pipe.scheduler), point.scheduler or searched.get("scheduler_name")
    if known is not None and sampler != known:
        hint = f' (dato.set_scheduler(pipe, "{known}"))' if known in SAMPLERS else ""
        found.append(f"sampler {sampler} instead of {known}{hint}")
    guidance, scale = searched.get("guidance_scale"), getattr(pipe, "_guidance_scale", None)
    if None not in (guidance, scale) and scale != guidance:
        found.append(f"guidance {scale:g} instead of {guidance:g}")
    return found


def _name(model: str | None) -> str | None:
    """A model by its name: a folder or file by its last part, since it may lie elsewhere; the hub's cache by its id."""
    if not model:
        return None
    model = str(model)
    if model == str(emoji_sd.PIPE):
        return "emoji-sd"
    if cached := cached_repository(model):
        return cached
    return os.path.basename(model.rstrip("/\\")) if os.path.isabs(model) or os.path.exists(model) else model
