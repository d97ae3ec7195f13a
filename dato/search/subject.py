"""The pipeline that a search was given in memory: what it is, and how it is left as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from diffusers import DiffusionPipeline

from dato import emoji_sd
from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError
from dato.search.prepare import Subject

# Arguments of a pipeline's call that the search gives.
_GIVEN = frozenset(("prompt", "num_inference_steps", "guidance_scale", "height", "width", "generator", "output_type"))


def subject_of(
    pipe: DiffusionPipeline, scheduler: str | None = None, pipe_kwargs: Mapping[str, Any] | None = None
) -> Subject:
    """Describe a pipeline in memory.

    Args:
        pipe: The pipeline.
        scheduler: The sampler to give it, a name of `dato.samplers.SAMPLERS`; None: the one that it has.
        pipe_kwargs: Further arguments of every call of the pipeline.

    Raises:
        DatoError: if it has no UNet, or an argument is one that the search gives.
    """
    unet = getattr(pipe, "unet", None)
    if unet is None:
        raise DatoError(f"`pipe`: a {type(pipe).__name__} has no UNet, and dato is for UNets")
    if given := sorted(_GIVEN & set(pipe_kwargs or {})):
        raise DatoError(f"`pipe_kwargs`: {given[0]} is given to the pipeline by the search")
    name = str(getattr(pipe, "name_or_path", None) or type(pipe).__name__)
    model = EMBEDDED if name == str(emoji_sd.PIPE) else name
    dtype = str(unet.dtype).removeprefix("torch.")
    device = getattr(pipe, "_execution_device", unet.device)  # between its calls an offloaded UNet is elsewhere
    return Subject(model, str(device), dtype, scheduler, pipe_kwargs=dict(pipe_kwargs or {}))


@contextlib.contextmanager
def as_it_was(pipe: DiffusionPipeline) -> Iterator[None]:
    """Hide the pipeline's bar within the block. Afterwards the pipeline has its bar and its sampler again."""
    scheduler = pipe.scheduler
    bar = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(**{**bar, "disable": True})
    try:
        yield
    finally:
        pipe.scheduler = scheduler
        pipe.set_progress_bar_config(**bar)
