"""Which schedule a run of ComfyUI gets, from the settings of dato's nodes."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from dato.comfyui.settings import Settings
from dato.errors import DatoError, first_line
from dato.schedule import Schedule
from dato.unet.ladder import Ladder
from dato.unet.speedup_rule import rule

# ComfyUI's sampler -> a sampler of `dato.samplers` that the rule treats alike. Any other one counts as one that adds
# noise, for which the rule is the most careful.
ALIKE = {
    "euler": "euler",
    "heun": "heun",
    "dpm_2": "heun",
    "lms": "lms",
    "ipndm": "lms",
    "ipndm_v": "lms",
    "dpmpp_2m": "dpm++2m",
    "deis": "dpm++2m",
    "unipc": "unipc",
    "unipc_bh2": "unipc",
    "dpmpp_sde": "dpm++sde",
    "dpmpp_2m_sde": "dpm++2m-sde",
    "dpmpp_2m_sde_heun": "dpm++2m-sde",
    "dpmpp_3m_sde": "dpm++2m-sde",
    "ddpm": "ddpm",
    "lcm": "lcm",
}
_OTHER = "euler-a"


def schedule_of_run(
    settings: Settings, unet: nn.Module, calls: int, sampler: str, guidance_scale: float | None
) -> Schedule:
    """Return the schedule of a run: a given one, resampled; or the rule's; or whole calls, which may prune.

    Args:
        settings: What the nodes set.
        unet: The UNet.
        calls: The run's number of calls.
        sampler: The name of ComfyUI's sampler (see `sampler_calls.sampler_of`).
        guidance_scale: The scale of classifier-free guidance ("cfg").

    Raises:
        DatoError: if the schedule does not fit the UNet, or the rule cannot count its FLOPs.
    """
    rungs = len(Ladder(unet))
    if settings.schedule is not None:
        schedule = settings.schedule.for_rungs(rungs).resampled(calls)
    elif settings.speedup is not None:
        schedule = _by_the_rule(unet, calls, settings.speedup, sampler, guidance_scale)
    else:
        schedule = Schedule.full(calls, rungs=rungs)
    first, last = round(settings.start * calls), round(settings.end * calls)
    depths = tuple(depth if first <= call < last else rungs for call, depth in enumerate(schedule.depths))
    schedule = replace(schedule, depths=depths)
    if settings.pruning is not None:
        schedule = replace(schedule, pruning=settings.pruning)
    return schedule if settings.ratio is None else schedule.with_ratios(settings.ratio)


def _by_the_rule(unet: nn.Module, calls: int, speedup: float, sampler: str, guidance_scale: float | None) -> Schedule:
    try:
        return rule(unet, calls, speedup, sampler=ALIKE.get(sampler, _OTHER), guidance_scale=guidance_scale)
    except DatoError:
        raise
    except Exception as error:  # layers of other nodes, such as quantised ones, may not run without weights
        raise DatoError(
            f"dato: the rule cannot count the FLOPs of this UNet ({first_line(error)}); choose a schedule or a front"
        ) from error
