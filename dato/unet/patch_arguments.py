"""What the arguments of `apply_patch` mean: each function here resolves one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from diffusers import ControlNetModel
from torch import nn

from dato.errors import DatoError
from dato.front import Front
from dato.point import Point
from dato.pruning import SITO_KEYWORDS, Pruning
from dato.schedule import Schedule
from dato.strategies import load_strategy
from dato.unet.compiled import CompiledCalls
from dato.unet.controlnet import control_nets
from dato.unet.ladder import Ladder
from dato.unet.run_schedule import GivenSchedule, RunSchedule, WholeCalls
from dato.unet.speedup_rule import RuleSchedule


def resolve_schedules(
    unet: nn.Module,
    schedule: Schedule | Point | Front | str | Path | None,
    speedup: float | None,
    quality: float | None,
    prune_ratio: float | Sequence[float] | None,
    pruning: Mapping[str, Any],
) -> tuple[Point | None, RunSchedule]:
    """Return what gives each run its schedule, and the point of a front that it comes from, if it does.

    Raises:
        DatoError: if there is no schedule, `speedup` or `quality` does not go with it, or it does not fit the UNet.
    """
    rungs = len(Ladder(unet))
    if schedule is None and speedup is not None:
        if quality is not None or prune_ratio is not None or pruning:
            raise DatoError("speedup= alone makes a schedule by a rule; with it, quality= and pruning need a schedule")
        return None, RuleSchedule(unet, speedup)
    if schedule is None and prune_ratio is not None:
        if quality is not None:
            raise DatoError("quality= chooses a point of a front, and none is given")
        return None, WholeCalls(prune_ratio, resolve_pruning(Pruning(), pruning), rungs)
    point, chosen = _resolve_schedule(schedule, speedup, quality, prune_ratio)
    chosen = replace(chosen, pruning=resolve_pruning(chosen.pruning, pruning)).for_rungs(rungs)
    return point, GivenSchedule(chosen)


def _resolve_schedule(
    schedule: Schedule | Point | Front | str | Path | None,
    speedup: float | None,
    quality: float | None,
    prune_ratio: float | Sequence[float] | None,
) -> tuple[Point | None, Schedule]:
    """Return the schedule, and the point of a front that it comes from, if it does."""
    point = None
    if schedule is None:
        raise DatoError(
            "apply_patch needs a schedule or a front (an object, a path or a name), or `speedup=2.5` (a rule makes the "
            "schedule), or `prune_ratio=0.5` (every call is whole and prunes)"
        )
    if isinstance(schedule, (str, Path)):
        schedule = load_strategy(schedule)
    if isinstance(schedule, Front):
        schedule = schedule.choose(speedup=speedup, quality=quality)
    elif speedup is not None or quality is not None:
        raise DatoError("speedup= and quality= choose a point of a front, but this is one schedule")
    if isinstance(schedule, Point):
        point, schedule = schedule, schedule.schedule
    if not isinstance(schedule, Schedule):
        raise DatoError(f"a schedule must be a dato.Schedule, a front, a path or a name, not {type(schedule).__name__}")
    return point, schedule if prune_ratio is None else schedule.with_ratios(prune_ratio)


def resolve_pruning(settings: Pruning, keywords: Mapping[str, Any]) -> Pruning:
    """Return the settings of pruning with some fields changed, by dato's or SiTo's names.

    Raises:
        DatoError: if a name is not known.
    """
    given = {SITO_KEYWORDS.get(name, name): value for name, value in keywords.items()}
    known = [field.name for field in fields(settings)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise DatoError(f"apply_patch: unknown option {unknown[0]!r}; token pruning has {', '.join(known)}")
    return replace(settings, **given)


def resolve_control_nets(pipe: Any, controlnet: str | None) -> list[ControlNetModel]:
    """Return the ControlNets that follow the schedule.

    Raises:
        DatoError: if the mode is not known, or the pipeline's ControlNets cannot follow.
    """
    if controlnet not in (None, "follow"):
        raise DatoError(f"controlnet={controlnet!r}: known is 'follow'; None runs ControlNets whole")
    return [] if controlnet is None else control_nets(pipe)


def resolve_compile(unet: nn.Module, compile: bool | Mapping[str, Any] | CompiledCalls) -> CompiledCalls | None:
    """Return the compiled calls of a UNet; None if nothing is compiled.

    Raises:
        DatoError: if `compile` has another type, or the compiled calls are of another UNet.
    """
    if isinstance(compile, CompiledCalls):
        if compile.unet is not unet:
            raise DatoError("compile=: these calls were compiled for another UNet")
        return compile
    if compile is False:
        return None
    if compile is not True and not isinstance(compile, Mapping):
        raise DatoError(
            f"compile={compile!r}: give True, False, a mapping of torch.compile's options, or CompiledCalls"
        )
    return CompiledCalls(unet, **({} if compile is True else compile))
