"""Samplers by the field's names: which of diffusers' schedulers each is, and how often it calls the UNet."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import DiffusionPipeline, SchedulerMixin

from dato.errors import DatoError, first_line

# Name -> diffusers' class and what it needs said.
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++2m-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm++2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    # Its noise comes from no generator of the pipeline's.
    "dpm++sde": ("DPMSolverSDEScheduler", {"noise_sampler_seed": 0}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
# Settings of diffusers' schedulers that make another sampler of one, as they are unless `SAMPLERS` says otherwise.
_VARIANTS = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "algorithm_type": "dpmsolver++",
}


def set_scheduler(pipe: DiffusionPipeline, name: str | None) -> None:
    """Give the pipeline the sampler of that name, with the noise schedule of the one it has; None changes nothing.

    Raises:
        DatoError: if `name` is not a key of `SAMPLERS`, or needs a package that is not there.

    Example:
        >>> from dato.generation.pipelines import load_pipeline
        >>> pipe = load_pipeline()
        >>> set_scheduler(pipe, "dpm++2m")
        >>> type(pipe.scheduler).__name__, sampler_name(pipe.scheduler)
        ('DPMSolverMultistepScheduler', 'dpm++2m')
    """
    if name is None:
        return
    if name not in SAMPLERS:
        raise DatoError(f"unknown scheduler {name!r}; known are {', '.join(SAMPLERS)}")
    kind, options = SAMPLERS[name]
    # Samplers made by from_config take only keys that are there, and DDIM clips its latents unless told not to.
    config = {"clip_sample": False, **pipe.scheduler.config}
    config |= {key: value for key, value in _VARIANTS.items() if key in config}  # these were the sampler's before
    try:
        pipe.scheduler = getattr(diffusers, kind).from_config(config, **options)
    except ImportError as error:
        raise DatoError(f"the scheduler {name!r} needs a package that is not installed: {first_line(error)}") from None


def sampler_name(scheduler: SchedulerMixin) -> str:
    """The key of `SAMPLERS` that a scheduler goes by, or its class's name if it is set up otherwise."""
    kind, config = type(scheduler).__name__, scheduler.config
    config = {**_VARIANTS, **{key: value for key, value in config.items() if value is not None}}
    for name, (known, options) in SAMPLERS.items():
        if known == kind and all(config.get(key) == value for key, value in (_VARIANTS | options).items()):
            return name
    return kind


def num_calls(pipe: DiffusionPipeline, steps: int) -> int:
    """How many times the sampler calls the UNet in a generation of `steps` steps.

    Raises:
        DatoError: if the sampler cannot do so many.
    """
    if steps < 1:
        raise DatoError(f"steps must be at least 1, not {steps}")
    try:
        pipe.scheduler.set_timesteps(steps)
    except ValueError as error:
        raise DatoError(f"{type(pipe.scheduler).__name__} cannot do {steps} steps: {error}") from None
    return len(pipe.scheduler.timesteps)


def lengths(pipe: DiffusionPipeline, most: int) -> dict[int, int]:
    """Number of UNet calls -> number of steps, ascending, up to the first length of at least `most` calls.

    Not every number of calls can be had, and some samplers cannot do a single step, or many.
    """
    found: dict[int, int] = {}
    for steps in range(1, most + 1):
        try:
            calls = num_calls(pipe, steps)
        except DatoError:
            continue
        found[calls] = steps
        if calls >= most:
            break
    return found
