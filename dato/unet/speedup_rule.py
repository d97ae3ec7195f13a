"""The rule: a schedule for a speed-up, a number of calls, a sampler and a guidance scale, without a search.

docs/rule.md has the rule as a table, and what was measured to choose it. In short: as many calls are whole as the
speed-up allows. The other calls are at depth 0 and continue along a line (order 1) where the prediction moves smoothly.
Where it does not, they are at depth 1 if the distances are short. Whole calls are dense at the beginning if many of
them are joined by lines, and if predictions are reused over long distances. Other distances are as equal as can be.
The last call is whole, but not if few calls are and the sampler is of first order.

The speed-up is how many times fewer FLOPs (floating-point operations) the UNet takes in a run. Nothing is assumed of
the time that text encoder, sampler and VAE take.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from numbers import Real
from typing import Any, NamedTuple

from torch import nn

from dato.errors import DatoError
from dato.samplers import SAMPLERS, num_calls
from dato.schedule import Schedule, even_parts
from dato.unet.depth_shares import depth_share
from dato.unet.ladder import Ladder
from dato.unet.run_schedule import UNKNOWN_LENGTH
from dato.unet.targets import latent_size, unet_of


class SamplerKind(NamedTuple):
    """What the rule needs to know of a sampler.

    Attributes:
        adds_noise: Whether it adds noise after the first call. Then the prediction does not move along a smooth curve.
        high_order: Whether it extrapolates over several past predictions itself, which amplifies a forecast's error.
        first_order: Whether it uses one prediction for each step. Then a line is good at strong guidance, too.
        last_is_whole: Whether the last call is whole if many calls are.
    """

    adds_noise: bool = False
    high_order: bool = False
    first_order: bool = False
    last_is_whole: bool = True


NOISELESS, FIRST_ORDER, HIGH_ORDER = SamplerKind(), SamplerKind(first_order=True), SamplerKind(high_order=True)
NOISY, NOISY_MULTISTEP = SamplerKind(adds_noise=True, last_is_whole=False), SamplerKind(adds_noise=True)
# By diffusers' class. Any other sampler is treated as one that adds noise.
KINDS = {
    **dict.fromkeys(
        (
            "DEISMultistepScheduler",
            "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler",
            "EDMDPMSolverMultistepScheduler",
            "HeunDiscreteScheduler",
            "KDPM2DiscreteScheduler",
            "UniPCMultistepScheduler",
        ),
        NOISELESS,
    ),
    **dict.fromkeys(("DDIMScheduler", "EDMEulerScheduler", "EulerDiscreteScheduler"), FIRST_ORDER),
    **dict.fromkeys(("IPNDMScheduler", "LMSDiscreteScheduler", "PNDMScheduler"), HIGH_ORDER),
}


class Run(NamedTuple):
    """The conditions of a run that the rule depends on.

    Attributes:
        sampler: The kind of its sampler.
        guidance_scale: The scale of classifier-free guidance; None if it is not known.
    """

    sampler: SamplerKind
    guidance_scale: float | None

    @property
    def strong(self) -> bool:
        """Whether guidance is known to be strong."""
        return self.guidance_scale is not None and self.guidance_scale > _STRONG_GUIDANCE

    def smooth(self, calls: int, whole: int) -> bool:
        """Whether the prediction moves along a curve that a line can forecast from so many whole calls."""
        if self.guidance_scale is None or self.sampler.adds_noise:
            return False
        return not self.strong or self.growing(calls, whole)

    def growing(self, calls: int, whole: int) -> bool:
        """Whether so many whole calls have growing distances, if the others follow a line."""
        guidance, kind = self.guidance_scale, self.sampler
        if guidance is None or guidance > _STRONGEST_GUIDANCE or kind.adds_noise or calls < whole * _SPARSE:
            return False
        return whole >= (
            _GROWING_FIRST if kind.first_order else _GROWING if guidance <= _STRONG_GUIDANCE else _GROWING_STRONG
        )


_STRONG_GUIDANCE = 4.0  # above it, guidance amplifies the errors of long forecasts
_STRONGEST_GUIDANCE = 9.0  # above it nothing was measured
_GROWTH = 1.3  # of `Schedule.spread`
_SPARSE = 1.9  # calls for each whole one, below which no distances grow
# From so many whole calls on they do: of samplers of first order, of others, and of others with strong guidance.
_GROWING_FIRST, _GROWING, _GROWING_STRONG = 10, 12, 20
# Calls for each whole one: from which on the distances of reused predictions grow; from which on a line has one more
# call after the last whole one, with samplers of first order; above which their distances grow.
_APART, _SOME, _FAR = 3.0, 2.5, 4.0
_FEWEST = 4  # whole calls, below which the last call is not one of them if the sampler adds noise
_MANY = 7  # whole calls, from which on the shorter distances come first
_SHORT = 2.75  # calls from one whole call to the next, up to which depth 1 is worth its price
_SHORT_WITH_NOISE = 8.0  # the same for samplers that add noise
_DEFAULT_STEPS = 50  # of most of diffusers' pipelines


def rule(
    pipe_or_unet: Any, calls: int, speedup: float, *, sampler: str | None = None, guidance_scale: float | None = None
) -> Schedule:
    """Return the rule's schedule, which `apply_patch(pipe, speedup=...)` runs.

    Args:
        pipe_or_unet: A diffusers pipeline with a `UNet2DConditionModel`, a model of CompVis' code, or the UNet of one
            of them.
        calls: UNet calls of one generation (see `num_calls`).
        speedup: How many times fewer FLOPs the UNet takes than in `calls` whole calls, above 1. If the calls are too
            few for it, the schedule has two whole calls, and is slower.
        sampler: The name of a sampler, one of `SAMPLERS`. None: the pipeline's.
        guidance_scale: The scale of classifier-free guidance. None: that of the pipeline's last run, or its default.

    Raises:
        DatoError: if there is no such UNet, or a number or the sampler is wrong.

    Example:
        >>> from dato.generation.pipelines import load_pipeline
        >>> schedule = rule(load_pipeline(), 10, 2.5, sampler="dpm++2m", guidance_scale=3)
        >>> schedule.depths, schedule.orders[1]
        ((12, 0, 0, 12, 0, 0, 12, 0, 0, 12), 1)
    """
    unet, pipe = unet_of(pipe_or_unet)
    checked_speedup(speedup)
    if isinstance(calls, bool) or not isinstance(calls, int) or calls < 1:
        raise DatoError(f"calls must be a whole number of at least 1, not {calls!r}")
    run = _run_of(pipe)
    if sampler is not None:
        if sampler not in SAMPLERS:
            raise DatoError(f"unknown sampler {sampler!r}; known are {', '.join(SAMPLERS)}")
        run = run._replace(sampler=_kind(*SAMPLERS[sampler]))
    if guidance_scale is not None:
        run = run._replace(guidance_scale=guidance_scale)
    return _schedule(unet, calls, speedup, run, _own_size(unet))


def checked_speedup(speedup: Any) -> float:
    """Return the speed-up as a number.

    Raises:
        DatoError: if it is not a finite number above 1.
    """
    if isinstance(speedup, bool) or not isinstance(speedup, Real) or not 1 < speedup < math.inf:
        raise DatoError(f"speedup must be a number above 1, not {speedup!r}; without a patch the pipeline is stock")
    return float(speedup)


class RuleSchedule:
    """Gives each run the rule's schedule for its number of calls and its sampler.

    Args:
        unet: The UNet.
        speedup: As in `rule`.

    Raises:
        DatoError: if the speed-up is not above 1.
    """

    length = UNKNOWN_LENGTH
    by_timestep = False

    def __init__(self, unet: nn.Module, speedup: float) -> None:
        self._unet, self._speedup = unet, checked_speedup(speedup)
        self._last: Schedule | None = None
        self._warned: set[int] = set()  # numbers of calls

    def current(self, pipe: Any) -> Schedule:
        """Return the schedule of the last run; before it, of a run of the pipeline's default number of steps."""
        if self._last is not None:
            return self._last
        steps = _default(pipe, "num_inference_steps", _DEFAULT_STEPS)
        calls = steps if pipe is None else num_calls(pipe, steps)
        return _schedule(self._unet, calls, self._speedup, _run_of(pipe), _own_size(self._unet))

    def of_run(
        self, pipe: Any, times: Sequence[float] | None, first: int, size: tuple[int, int], *, quiet: bool = False
    ) -> Schedule:
        """Return the schedule of a run. The calls before the first one are whole."""
        if times is None:
            self._last = _endless(self._unet, self._speedup, size)
            return self._last
        calls = len(times) - first
        self._last = _schedule(self._unet, calls, self._speedup, _run_of(pipe), size)
        if self._last.depths.count(self._last.rungs) * self._speedup > calls and calls not in self._warned:
            self._warned.add(calls)
            warnings.warn(
                f"speedup={self._speedup:g} cannot be reached in {calls} UNet calls, of which the first and the last "
                "must be whole; this run is as fast as it can be",
                stacklevel=10,
            )
        return _begun_later(self._last, first)


def _schedule(unet: nn.Module, calls: int, speedup: float, run: Run, size: tuple[int, int]) -> Schedule:
    """Return the rule's schedule for a run of `calls` calls."""
    kind, rungs = run.sampler, len(Ladder(unet))
    whole, depth = _whole_and_depth(unet, calls, speedup, run, size)
    few, smooth = whole < _MANY, run.smooth(calls, whole)
    if not depth and run.growing(calls, whole):
        return Schedule.spread(calls, whole, 0, 1, cooldown=2, growth=_GROWTH, rungs=rungs)
    if kind.adds_noise or (few and kind.high_order):
        order = 0
    elif depth:
        order = int(calls <= whole * _SHORT or (smooth and not few))
    else:
        order = int(smooth)
    whole = min(calls, max(2, whole))
    if kind.first_order and order and not depth and calls >= whole * _SOME:
        growth = _GROWTH if calls > whole * _FAR else 1.0
        return Schedule.spread(calls, whole, 0, 1, growth=growth, tail=1, rungs=rungs)
    if not (depth or order or kind.adds_noise or kind.high_order) and calls >= whole * _APART:
        return Schedule.spread(calls, whole, 0, 0, growth=_GROWTH, tail=2 * kind.first_order, rungs=rungs)
    last_is_whole = kind.last_is_whole and not (kind.adds_noise and (whole < _FEWEST or (few and run.strong)))
    gaps = even_parts(calls - 1, whole - 1) if last_is_whole else even_parts(calls, whole)[1:]
    if kind.adds_noise or (smooth and (kind.high_order or (few and not depth))):
        gaps.reverse()  # the longer distances come first
    return _with_whole_calls(calls, accumulate(gaps, initial=0), depth, order, rungs)


def _whole_and_depth(unet: nn.Module, calls: int, speedup: float, run: Run, size: tuple[int, int]) -> tuple[int, int]:
    """Return how many calls may be whole, and the depth of the others: 1 where that is worth its price."""
    whole, beside_depth_1 = (_affordable(calls, speedup, share) for share in (0.0, depth_share(unet, 1, size)))
    longest = _SHORT_WITH_NOISE if run.sampler.adds_noise else _SHORT
    smooth = run.smooth(calls, whole)
    short = not smooth and calls <= beside_depth_1 * longest
    line_is_better = smooth and run.sampler.first_order and whole < _MANY
    if beside_depth_1 >= 2 and (short or (beside_depth_1 == whole and not line_is_better)):
        return beside_depth_1, 1
    return whole, 0


def _endless(unet: nn.Module, speedup: float, size: tuple[int, int]) -> Schedule:
    """Return the schedule of a run whose number of calls is not known. It suits every sampler."""
    whole, depth = _whole_and_depth(unet, UNKNOWN_LENGTH, speedup, Run(NOISY, None), size)
    whole = max(1, whole)
    positions = (math.ceil(i * UNKNOWN_LENGTH / whole) for i in range(whole))
    return _with_whole_calls(UNKNOWN_LENGTH, positions, depth, 0, len(Ladder(unet)))


def _affordable(calls: int, speedup: float, share: float = 0.0) -> int:
    """Return how many calls may be whole, if each other call takes this share of a whole call's FLOPs."""
    # Rounding keeps 50 / 2.5 from being a little less than 20.
    return math.floor(round((calls / speedup - calls * share) / (1 - share), 9))


def _with_whole_calls(calls: int, whole: Iterable[int], depth: int, order: int, rungs: int) -> Schedule:
    """Return a schedule with these calls whole, and the others at one depth and order."""
    whole = frozenset(whole)
    depths = tuple(rungs if call in whole else depth for call in range(calls))
    return Schedule(depths, None, order, rungs, forecast="aligned" if depth and order else "polynomial")


def _begun_later(schedule: Schedule, first: int) -> Schedule:
    """Return a schedule that has `first` whole calls before this one."""
    return replace(
        schedule,
        depths=(schedule.rungs,) * first + schedule.depths,
        ratios=(0.0,) * first + schedule.ratios,
        orders=(0,) * first + schedule.orders,
    )


def _run_of(pipe: Any) -> Run:
    """Return the conditions of a pipeline's run. If the pipeline is not known, nor are they."""
    scheduler = getattr(pipe, "scheduler", None)
    kind = NOISY if scheduler is None else _kind(type(scheduler).__name__, scheduler.config)
    guidance = getattr(pipe, "_guidance_scale", None)
    if guidance is not None and not getattr(pipe, "do_classifier_free_guidance", True):
        guidance = 1.0
    return Run(kind, _default(pipe, "guidance_scale", None) if guidance is None else guidance)


def _kind(name: str, config: Mapping[str, Any]) -> SamplerKind:
    """Return the kind of a sampler by its class and settings."""
    if "sde" in str(config.get("algorithm_type", "")):
        return NOISY_MULTISTEP
    return KINDS.get(name, NOISY)


def _own_size(unet: nn.Module) -> tuple[int, int]:
    """Return the size of the latents that the UNet was made for."""
    return latent_size(unet) or (64, 64)


def _default(pipe: Any, name: str, otherwise: Any) -> Any:
    """Return the default of a number that a pipeline is called with."""
    parameter = None if pipe is None else inspect.signature(pipe.__call__).parameters.get(name)
    return parameter.default if parameter is not None and isinstance(parameter.default, Real) else otherwise
