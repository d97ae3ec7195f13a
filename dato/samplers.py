"""Samplers by name (ddim, plms, ...): set a pipeline's sampler, and count the UNet calls that it makes."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dato.errors import DatoError, first_line

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, SchedulerMixin

# Name -> diffusers' class and the settings that it needs.
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
    # Its noise does not come from the pipeline's generator, so it needs a seed of its own.
    "dpm++sde": ("DPMSolverSDEScheduler", {"noise_sampler_seed": 0}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
# Settings that make another sampler of the same class. A sampler has these values unless `SAMPLERS` says otherwise.
_VARIANTS = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "algorithm_type": "dpmsolver++",
}
_TRIAL_STEPS = 10


def known_sampler(name: str | None) -> str | None:
    """Return a name that `set_scheduler` knows as it is, and None for any other, such as a class of diffusers."""
    return name if name in SAMPLERS else None


def set_scheduler(pipe: DiffusionPipeline, name: str | None) -> None:
    """Give a pipeline the sampler of that name, with its present noise schedule. None changes nothing.

    Raises:
        DatoError: if `name` is not a key of `SAMPLERS` or needs a package that is not installed, or if that sampler
            cannot have the present noise schedule, or the kind of prediction that the model makes.

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
    import diffusers

    class_name, options = SAMPLERS[name]
    kind, present = getattr(diffusers, class_name), pipe.scheduler
    _check_noise_schedule(name, kind, present)
    # from_config takes only keys that the old config has, and DDIM clips its latents unless a key forbids it.
    config = {"clip_sample": False, **present.config}
    # The old sampler's variant must not pass to the new one.
    config |= {key: value for key, value in _VARIANTS.items() if key in config}
    try:
        scheduler = kind.from_config(config, **options)
        _try_prediction(copy.deepcopy(scheduler))
    except ImportError as error:
        raise DatoError(f"the scheduler {name!r} needs a package that is not installed: {first_line(error)}") from None
    except (NotImplementedError, ValueError) as error:  # such as a kind of prediction that it does not know
        raise DatoError(_refused(name, present, f"{class_name} says: {first_line(error)}")) from None
    pipe.scheduler = scheduler


@contextlib.contextmanager
def sampler_set(pipe: DiffusionPipeline, name: str | None) -> Iterator[None]:
    """Give a pipeline the sampler of that name within a `with` block. None, or the one that it has, changes nothing."""
    before = pipe.scheduler
    set_scheduler(pipe, None if name == sampler_name(before) else name)
    try:
        yield
    finally:
        pipe.scheduler = before


# Settings of a noise schedule that a sampler has to know to keep it, and their usual values.
_NOISE_SCHEDULE = {"rescale_betas_zero_snr": False, "use_flow_sigmas": False, "timestep_type": "discrete"}


def _check_noise_schedule(name: str, kind: type[SchedulerMixin], present: SchedulerMixin) -> None:
    """Raise DatoError if a sampler cannot have the noise schedule of the present one."""
    config = present.config
    # EDM and flow matching have none. `from_config` would silently take its own defaults.
    if "beta_start" not in config and config.get("trained_betas") is None:
        raise DatoError(_refused(name, present, "its noise schedule is not made of betas (EDM, flow matching)"))
    known = inspect.signature(kind.__init__).parameters
    for setting, usual in _NOISE_SCHEDULE.items():
        value = config.get(setting, usual)
        if value != usual and setting not in known:
            raise DatoError(_refused(name, present, f"it has {setting}={value!r}, which {kind.__name__} does not know"))


def _try_prediction(scheduler: SchedulerMixin) -> None:
    """Let a sampler do one step, which is where it refuses kinds of prediction that it does not know."""
    import torch

    latent = torch.zeros(1, 1, 8, 8)
    with torch.random.fork_rng(devices=[]):  # the step may draw noise
        try:
            scheduler.set_timesteps(_TRIAL_STEPS)
        except ValueError:
            return  # it cannot do so many steps
        time = scheduler.timesteps[0]
        scheduler.step(latent, time, scheduler.scale_model_input(latent, time))


def _refused(name: str, present: SchedulerMixin, reason: str) -> str:
    what = f"cannot replace {type(present).__name__} by the scheduler {name!r}"
    return f"{what}: {reason}. Keep the pipeline's own scheduler"


def sampler_name(scheduler: SchedulerMixin) -> str:
    """Return the key of `SAMPLERS` that a scheduler is, or its class's name if it is set up otherwise."""
    kind = type(scheduler).__name__
    config = _VARIANTS | {key: value for key, value in scheduler.config.items() if value is not None}
    for name, (class_name, options) in SAMPLERS.items():
        if class_name == kind and all(config.get(key) == value for key, value in (_VARIANTS | options).items()):
            return name
    return kind


def num_calls(pipe: DiffusionPipeline, steps: int) -> int:
    """Return how many times the sampler calls the UNet in a generation of `steps` steps.

    The pipeline's scheduler stays as it is, also in the middle of a generation.

    Raises:
        DatoError: if the sampler cannot do this number of steps.
    """
    if steps < 1:
        raise DatoError(f"steps must be at least 1, not {steps}")
    scheduler = _copied(pipe.scheduler)
    try:
        scheduler.set_timesteps(steps)
    except ValueError as error:
        raise DatoError(f"{type(scheduler).__name__} cannot do {steps} steps: {error}") from None
    return len(scheduler.timesteps)


def lengths(pipe: DiffusionPipeline, most: int) -> dict[int, int]:
    """Return {number of UNet calls: number of steps}, ascending, up to the first number of at least `most` calls.

    A sampler cannot make every number of calls. Some cannot do a single step, or many.
    """
    steps_of: dict[int, int] = {}
    for steps in range(1, most + 1):
        try:
            calls = num_calls(pipe, steps)
        except DatoError:
            continue
        steps_of[calls] = steps
        if calls >= most:
            break
    return steps_of


def _copied(scheduler: SchedulerMixin) -> SchedulerMixin:
    """Return a copy on which `set_timesteps` does not change the original.

    `set_timesteps` only assigns attributes, so a shallow copy is enough. A scheduler inside it (UniPC's `solver_p`) is
    copied in the same way.
    """
    twin = copy.copy(scheduler)
    for name, value in vars(scheduler).items():
        if hasattr(value, "set_timesteps"):
            setattr(twin, name, _copied(value))
    return twin
