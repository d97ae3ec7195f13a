"""Patch a diffusers pipeline so that it runs a schedule, and take the patch off again."""

from __future__ import annotations

import contextlib
import copy
import inspect
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.utils import USE_PEFT_BACKEND, scale_lora_layers, unscale_lora_layers
from torch import Tensor, nn

from dato.errors import DatoError
from dato.front import Front
from dato.point import Point
from dato.pruning import SITO_KEYWORDS, Pruning
from dato.schedule import Schedule
from dato.strategies import load_strategy
from dato.tokens.pruner import TokenPruner
from dato.unet.cache import Cache, Present, retention
from dato.unet.calls import Call, CallCounter
from dato.unet.compiled import CompiledCalls, Kind
from dato.unet.controlnet import Follower, control_nets
from dato.unet.forward_override import Takeover
from dato.unet.ladder import Ladder
from dato.unet.run_check import differences
from dato.unet.targets import compile_settings, guidance_parts, owns, unet_of, wrapper_of

T = TypeVar("T")
_ATTRIBUTE = "_dato_patch"
_FORWARD_ARGUMENTS = tuple(inspect.signature(UNet2DConditionModel.forward).parameters)[1:]


def apply_patch(
    pipe_or_unet: T,
    schedule: Schedule | Point | Front | str | Path | None = None,
    *,
    speedup: float | None = None,
    quality: float | None = None,
    prune_ratio: float | None = None,
    compile: bool | Mapping[str, Any] | CompiledCalls | None = None,
    controlnet: str | None = None,
    **pruning: Any,
) -> T:
    """Make a pipeline run a schedule. The pipeline is used as before; `remove_patch` undoes it bit for bit.

    Args:
        pipe_or_unet: A diffusers pipeline with a `UNet2DConditionModel`, or such a UNet. One that is patched already
            gets the new schedule instead.
        schedule: A `Schedule`; a `Point` or `Front`; the path of a schedule or front as JSON; the name of a shipped
            one; or user/name on the Hugging Face hub. Of a front the knee is taken, unless `speedup` or `quality` says
            otherwise; a point is meant for its own number of steps and sampler (`Point.kwargs`, `Point.scheduler`).
            None, with `prune_ratio`: every call whole, with that ratio.
        speedup: Of a front, the best quality that is at least this many times as fast as stock.
        quality: Of a front, the fastest point of at least this quality.
        prune_ratio: One ratio for all calls, instead of the schedule's own.
        compile: True compiles each different call of the schedule once, when it is first run, with `torch.compile`;
            a mapping holds keyword arguments for that, as {"mode": "reduce-overhead"}. What was compiled goes with the
            patch, unless it is a `dato.CompiledCalls` of this UNet, which can be used again. None: as True where
            the
            UNet was compiled before (`pipe.unet = torch.compile(pipe.unet)` or `pipe.unet.compile()`), in its mode.
        controlnet: "follow" runs the pipeline's ControlNets in each call only as deep as the UNet will read them, which
            makes no difference to the image (see `dato.unet.controlnet`); None runs them whole.
        **pruning: Fields of `Pruning`, or SiTo's names for them, instead of the schedule's own.

    Returns:
        `pipe_or_unet`.

    Raises:
        DatoError: if it is no such pipeline, or the schedule cannot be loaded or does not fit the UNet.

    Example:
        >>> from dato.generation.pipelines import load_pipeline
        >>> pipe = apply_patch(load_pipeline(), Schedule.uniform(4, 2, 1), prune_ratio=0.5)
        >>> pipe("rose on a white background", num_inference_steps=3).images[0].size  # 3 PLMS steps are 4 calls
        (64, 64)
        >>> current_schedule(pipe).entries[1]
        (1, 0.5, 0)
    """
    unet, pipe = unet_of(pipe_or_unet)
    point, chosen = _schedule_of(schedule, speedup, quality, prune_ratio)
    chosen = replace(chosen, pruning=_pruning_of(chosen.pruning, pruning))
    if controlnet not in (None, "follow"):
        raise DatoError(f"controlnet={controlnet!r}: known is 'follow'; None runs ControlNets whole")
    nets = [] if controlnet is None else control_nets(pipe)
    present = patch_of(pipe_or_unet)
    kept = None if present is None else present.compiled
    settings = compile_settings(pipe_or_unet, kept) if compile is None else compile
    steps, wrapper = _steps_of(unet, settings), wrapper_of(pipe_or_unet)
    patch = Patch(unet, chosen, pipe, steps=steps, nets=nets, point=point, wrapper=wrapper)
    remove_patch(unet)
    patch.attach()
    return pipe_or_unet


def remove_patch(pipe_or_unet: T) -> T:
    """Take the patch off, if there is one: the pipeline is the stock one again, and the caches are freed.

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
    """The patch that a pipeline or UNet carries, if it does."""
    return getattr(unet_of(pipe_or_unet)[0], _ATTRIBUTE, None)


@contextlib.contextmanager
def patched(
    pipe_or_unet: T, schedule: Schedule | Point | Front | str | Path | None = None, **options: Any
) -> Iterator[T]:
    """Patch within a `with` block; what was there before, stock or another patch, comes back after it.

    Takes what `apply_patch` takes.

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


class Patch:
    """One UNet running one schedule: its ladder, its own cache, its own place in the generation.

    Attributes:
        pruner: What prunes its tokens; None: the schedule prunes none.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        schedule: Schedule,
        pipe: Any = None,
        *,
        steps: CompiledCalls | None = None,
        nets: Iterable[ControlNetModel] = (),
        point: Point | None = None,
        wrapper: nn.Module | None = None,
    ) -> None:
        self.unet = unet
        self.ladder = Ladder(unet)
        self.schedule = schedule.for_rungs(len(self.ladder))
        self._pipe = None if pipe is None else weakref.ref(pipe)
        self._point = None if pipe is None else point  # until it was compared with a run
        self._cache = Cache()
        self._keep: tuple[dict[int, int], ...] = ()
        self._calls = CallCounter()
        self._steps = steps
        self.pruner = None
        if any(schedule.ratios):
            self.pruner = TokenPruner(unet, schedule.pruning) if steps is None else steps.pruner(schedule.pruning)
        self._fitted: dict[int, Schedule] = {len(schedule): self.schedule}
        self._takeover = Takeover(unet, self.forward, wrapper)
        self._followers = [Follower(net, self._follow, len(self.ladder)) for net in nets]
        self._followed: int | None = None  # the depth that the ControlNets ran for, if they follow

    @property
    def compiled(self) -> Any:
        """What `unet.compile()` made before it was patched."""
        return self._takeover.compiled

    def attach(self) -> None:
        """Take over the UNet's forward."""
        self._takeover.attach()
        setattr(self.unet, _ATTRIBUTE, self)
        for part in (*self._followers, self._steps, self.pruner):
            if part is not None:
                part.attach()

    def detach(self) -> None:
        """Give the UNet's forward back and free the caches."""
        self._takeover.detach()
        delattr(self.unet, _ATTRIBUTE)
        for part in (*self._followers, self._steps, self.pruner):
            if part is not None:
                part.detach()
        self._forget()

    @torch.compiler.disable  # what is in it is compiled by `CompiledCalls`, or not at all
    def forward(self, *args: Any, **kwargs: Any) -> UNet2DConditionOutput | tuple[Tensor]:
        """Stands in for `UNet2DConditionModel.forward`: the same arguments, the same kind of result."""
        if not self._takeover.attached:
            return self._takeover.stock(*args, **kwargs)
        arguments = dict(zip(_FORWARD_ARGUMENTS, args, strict=False), **kwargs)
        return_dict = arguments.pop("return_dict", True)
        sample, timestep = arguments["sample"], arguments["timestep"]
        schedule, call = self._place(self._calls, timestep, sample)
        if call.fresh:
            self._begin(schedule, call, sample)

        _, ratio, order = schedule.entries[call.index]
        self._cache.begin(Present(call.index, call.time, order, self._keep[call.index]))
        depth, followed, self._followed = self._depth(schedule, call), self._followed, None
        try:
            controlled = arguments.get("down_block_additional_residuals") is not None
            if controlled and followed is not None and depth > followed:
                raise DatoError("controlnet='follow': the UNet got other inputs than its ControlNet; patch without it")
            with _lora_scale(self.unet, arguments):
                prediction = self._run(depth, ratio, arguments)
        except BaseException:
            self._forget()  # whatever comes next, it does not continue this generation
            raise
        self._cache.end()
        if call.index == len(schedule) - 1:
            self._forget()
        return UNet2DConditionOutput(sample=prediction) if return_dict else (prediction,)

    def _begin(self, schedule: Schedule, call: Call, sample: Tensor) -> None:
        """A generation begins."""
        self._cache = Cache(schedule.forecast, len(schedule))
        self._keep = retention(schedule, call.times)
        if self.pruner is not None:
            self.pruner.parts = guidance_parts(self._owner)
            self.pruner.begin(sample.device)
        point, pipe = self._point, self._owner
        # Another pipeline with the same UNet may be running; this one's turn to be compared will come.
        if point is not None and pipe is not None and call.times == tuple(pipe.scheduler.timesteps.tolist()):
            self._point = None
            elsewhere = differences(point, pipe, sample, call.total)
            if elsewhere:
                warnings.warn(
                    f"this run is not what the schedule was searched for: {'; '.join(elsewhere)}. Quality and speed-up "
                    "will be others than the front says",
                    stacklevel=6,
                )

    def _depth(self, schedule: Schedule, call: Call) -> int:
        """How deep a call runs; where the cache cannot serve it (img2img starts midway; shapes may change), whole."""
        depth, full = schedule.depths[call.index], len(self.ladder)
        return depth if depth < full and not call.fresh and self._cache.bears(depth) else full

    def _follow(self, timestep: Tensor | float) -> int:
        """The depth of the call that comes next, of which a ControlNet has seen the timestep."""
        self._followed = self._depth(*self._place(copy.copy(self._calls), timestep))
        return self._followed

    @property
    def _owner(self) -> Any:
        """The pipeline that was patched, while its UNet is this one: of a copy's it is not."""
        pipe = None if self._pipe is None else self._pipe()
        return pipe if owns(pipe, self.unet) else None

    def _run(self, depth: int, ratio: float, arguments: dict[str, Any]) -> Tensor:
        if self.pruner is not None and depth:
            self.pruner.prepare(ratio, arguments["sample"], self._cache.present.time)
        if self._steps is None or not depth:
            prediction = self.ladder.run(depth, self._cache, **arguments)
        else:
            kind = Kind(ratio, None if self.pruner is None else self.schedule.pruning)
            prediction = self._steps.run(depth, kind, self._cache, **arguments)
        if self.pruner is not None and depth:
            self.pruner.observe(prediction)
        return prediction

    def _place(
        self, calls: CallCounter, timestep: Tensor | float, sample: Tensor | None = None
    ) -> tuple[Schedule, Call]:
        timesteps = getattr(getattr(self._owner, "scheduler", None), "timesteps", None)
        call = calls.next(timestep, sample, timesteps, length=len(self.schedule))
        total = call.total or len(self.schedule)
        if total not in self._fitted:
            if len(set(self.schedule.entries)) > 1 and self._point is None:  # of a front more is said
                warnings.warn(
                    f"the schedule has {len(self.schedule)} calls and this run has {total}, so it is resampled; "
                    "a schedule that was searched for this number of steps would do better",
                    stacklevel=5,
                )
            self._fitted[total] = self.schedule.resampled(total)
        return self._fitted[total], call

    def _forget(self) -> None:
        self._cache.clear()
        self._calls.reset()
        self._followed = None
        for follower in self._followers:
            follower.forget()
        if self.pruner is not None:
            self.pruner.begin(None)


@contextlib.contextmanager
def _lora_scale(unet: UNet2DConditionModel, arguments: dict[str, Any]) -> Iterator[None]:
    """Do with `cross_attention_kwargs["scale"]` what the stock forward does: scale LoRA layers for this call."""
    extra = arguments.get("cross_attention_kwargs")
    if not extra or "scale" not in extra:
        yield
        return
    arguments["cross_attention_kwargs"] = {k: v for k, v in extra.items() if k != "scale"}
    if not USE_PEFT_BACKEND:
        yield
        return
    scale_lora_layers(unet, extra["scale"])
    try:
        yield
    finally:
        unscale_lora_layers(unet, extra["scale"])


def _schedule_of(
    schedule: Schedule | Point | Front | str | Path | None,
    speedup: float | None,
    quality: float | None,
    prune_ratio: float | None,
) -> tuple[Point | None, Schedule]:
    """The point that was chosen, if the schedule comes from one, and the schedule."""
    point = None
    if schedule is None:
        if prune_ratio is None:
            raise DatoError("apply_patch needs a schedule (or a front, a path, a name), or prune_ratio=...")
        schedule = Schedule.full(1)
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


def _steps_of(unet: UNet2DConditionModel, compile: bool | Mapping[str, Any] | CompiledCalls) -> CompiledCalls | None:
    if isinstance(compile, CompiledCalls):
        if compile.unet is not unet:
            raise DatoError("compile=: these steps were compiled for another UNet")
        return compile
    if compile is False:
        return None
    if compile is not True and not isinstance(compile, Mapping):
        raise DatoError(
            f"compile={compile!r}: give True, False, a mapping of torch.compile's options, or CompiledCalls"
        )
    return CompiledCalls(unet, **({} if compile is True else compile))


def _pruning_of(base: Pruning, keywords: dict[str, Any]) -> Pruning:
    fields = {SITO_KEYWORDS.get(name, name): value for name, value in keywords.items()}
    unknown = sorted(set(fields) - set(base.to_dict()))
    if unknown:
        raise DatoError(f"apply_patch: unknown option {unknown[0]!r}; token pruning has {', '.join(base.to_dict())}")
    return replace(base, **fields)


def current_schedule(pipe_or_unet: Any) -> Schedule | None:
    """The schedule that a pipeline is patched with; None if it is the stock one."""
    patch = getattr(unet_of(pipe_or_unet)[0], _ATTRIBUTE, None)
    return None if patch is None else patch.schedule
