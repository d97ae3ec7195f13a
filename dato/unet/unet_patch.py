"""The object that replaces one UNet's forward and runs a schedule there. `dato.unet.patch` is the public side."""

from __future__ import annotations

import contextlib
import copy
import inspect
import warnings
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.utils import USE_PEFT_BACKEND, scale_lora_layers, unscale_lora_layers
from torch import Tensor, nn

from dato.call import Call
from dato.errors import DatoError
from dato.point import Point
from dato.schedule import Schedule
from dato.tokens.pruner import TokenPruner
from dato.unet.cache import Cache
from dato.unet.compiled import CompiledCalls, Variant
from dato.unet.controlnet import Follower
from dato.unet.current_call import CallCounter, Position
from dato.unet.forward_override import ForwardOverride
from dato.unet.ladder import Ladder
from dato.unet.run_check import differences
from dato.unet.run_schedule import RunSchedule
from dato.unet.targets import guidance_parts, owns

ATTRIBUTE = "_dato_patch"  # of the UNet while it is patched
_FORWARD_ARGUMENTS = tuple(inspect.signature(UNet2DConditionModel.forward).parameters)[1:]


class Patch:
    """Runs a schedule in one UNet.

    Args:
        unet: The UNet.
        schedules: Gives the schedule of each run.
        pipe: The pipeline around the UNet, if there is one.
        compiled_calls: What compiles the calls; None: they are not compiled.
        nets: The ControlNets that follow the schedule.
        point: The point of a front that the schedule comes from, if it does. Its conditions are compared with a run.
        wrapper: What `torch.compile` made of the UNet, if it stands in the UNet's place.

    Attributes:
        pruner: What prunes the tokens; None if the schedule prunes none.

    Raises:
        DatoError: if the UNet cannot be cut into rungs, or the schedule does not fit it.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        schedules: RunSchedule,
        pipe: Any = None,
        *,
        compiled_calls: CompiledCalls | None = None,
        nets: Iterable[ControlNetModel] = (),
        point: Point | None = None,
        wrapper: nn.Module | None = None,
    ) -> None:
        self.unet = unet
        self.ladder = Ladder(unet)
        self._schedules = schedules
        self._running: Schedule | None = None  # the schedule of the generation that is running
        self._pipe = None if pipe is None else weakref.ref(pipe)
        self._point = None if pipe is None else point  # None after it was compared with a run
        self._cache = Cache()
        self._calls: tuple[Call, ...] = ()  # of the generation that is running
        self._counter = CallCounter()
        self._compiled_calls = compiled_calls
        self.pruner = None
        pruning = self.schedule.pruning
        if any(self.schedule.ratios):
            self.pruner = TokenPruner(unet, pruning) if compiled_calls is None else compiled_calls.pruner(pruning)
        self._override = ForwardOverride(unet, self.forward, wrapper)
        self._followers = [Follower(net, self._depth_of_next, len(self.ladder)) for net in nets]
        self._followed_depth: int | None = None  # the depth that the ControlNets ran for, if they follow

    @property
    def schedule(self) -> Schedule:
        """The schedule of the last run. Before the first run, the one that the next run is expected to have."""
        return self._schedules.current(self._owner)

    @property
    def compiled(self) -> Any:
        """What `unet.compile()` made before the UNet was patched."""
        return self._override.compiled

    def attach(self) -> None:
        """Override the UNet's forward."""
        self._override.attach()
        setattr(self.unet, ATTRIBUTE, self)
        for part in (*self._followers, self._compiled_calls, self.pruner):
            if part is not None:
                part.attach()

    def detach(self) -> None:
        """Restore the UNet's forward and free the caches."""
        self._override.detach()
        delattr(self.unet, ATTRIBUTE)
        for part in (*self._followers, self._compiled_calls, self.pruner):
            if part is not None:
                part.detach()
        self._forget()

    @torch.compiler.disable  # `CompiledCalls` compiles the parts, or nothing does
    def forward(self, *args: Any, **kwargs: Any) -> UNet2DConditionOutput | tuple[Tensor]:
        """Stand in for `UNet2DConditionModel.forward`, with its arguments and its kind of result."""
        if not self._override.attached:
            return self._override.stock(*args, **kwargs)
        arguments = dict(zip(_FORWARD_ARGUMENTS, args, strict=False), **kwargs)
        return_dict = arguments.pop("return_dict", True)
        sample, timestep = arguments["sample"], arguments["timestep"]
        position = self._position(self._counter, timestep, sample)
        if position.fresh:
            self._begin(position, sample)
        call = self._calls[position.index]
        self._cache.begin(call, position.time)
        depth, followed, self._followed_depth = self._depth(position), self._followed_depth, None
        try:
            controlled = arguments.get("down_block_additional_residuals") is not None
            if controlled and followed is not None and depth > followed:
                raise DatoError("controlnet='follow': the UNet got other inputs than its ControlNet; patch without it")
            with _lora_scale(self.unet, arguments):
                prediction = self._run(depth, call.ratio, arguments)
        except BaseException:
            self._forget()  # the next call does not continue this generation
            raise
        self._cache.end()
        if position.index == len(self._running) - 1:
            self._forget()
        return UNet2DConditionOutput(sample=prediction) if return_dict else (prediction,)

    def _begin(self, position: Position, sample: Tensor) -> None:
        """Begin a generation."""
        pipe, size = self._owner, tuple(sample.shape[-2:])
        # If the schedule is of a front, the comparison below says more.
        quiet = self._point is not None
        schedule = self._schedules.of_run(pipe, position.total, position.index, size, quiet=quiet)
        self._running = schedule
        self._cache = Cache(schedule.rule, len(schedule))
        self._calls = schedule.calls(position.times)
        if self.pruner is not None:
            self.pruner.parts = guidance_parts(self._owner)
            self.pruner.begin(sample.device)
        point = self._point
        # Another pipeline with the same UNet may be running. Then the comparison waits until this one runs.
        if point is not None and pipe is not None and position.times == tuple(pipe.scheduler.timesteps.tolist()):
            self._point = None
            found = differences(point, pipe, sample, position.total)
            if found:
                warnings.warn(
                    f"this run is not what the schedule was searched for: {'; '.join(found)}. Quality and speed-up "
                    "will differ from the front's",
                    stacklevel=6,
                )

    def _depth(self, position: Position) -> int:
        """Return the depth of a call: the whole UNet if the cache cannot serve the schedule's depth.

        This happens in img2img, which starts midway, and when shapes change.
        """
        full = len(self.ladder)
        if position.fresh:
            return full
        depth = self._running.depths[position.index]
        return depth if depth < full and self._cache.can_serve(depth) else full

    def _depth_of_next(self, timestep: Tensor | float) -> int:
        """Return the depth of the call that comes next, whose timestep a ControlNet has got."""
        self._followed_depth = self._depth(self._position(copy.copy(self._counter), timestep))
        return self._followed_depth

    @property
    def _owner(self) -> Any:
        """The pipeline that was patched; None if its UNet is not this one any more, for example in a copy."""
        pipe = None if self._pipe is None else self._pipe()
        return pipe if owns(pipe, self.unet) else None

    def _run(self, depth: int, ratio: float, arguments: dict[str, Any]) -> Tensor:
        """Run one call."""
        if self.pruner is not None and depth:
            self.pruner.prepare(ratio, arguments["sample"], self._cache.time)
        if self._compiled_calls is None or not depth:
            prediction = self.ladder.run(depth, self._cache, **arguments)
        else:
            variant = Variant(ratio, None if self.pruner is None else self.schedule.pruning)
            prediction = self._compiled_calls.run(depth, variant, self._cache, **arguments)
        if self.pruner is not None and depth:
            self.pruner.observe(prediction)
        return prediction

    def _position(self, counter: CallCounter, timestep: Tensor | float, sample: Tensor | None = None) -> Position:
        """Return the position of the next call in its generation."""
        timesteps = getattr(getattr(self._owner, "scheduler", None), "timesteps", None)
        length = self._schedules.length if self._running is None else len(self._running)
        return counter.next(timestep, sample, timesteps, length=length)

    def _forget(self) -> None:
        """Free the caches, because a generation is over."""
        self._cache.clear()
        self._counter.reset()
        self._running = None
        self._followed_depth = None
        for follower in self._followers:
            follower.forget()
        if self.pruner is not None:
            self.pruner.begin(None)


@contextlib.contextmanager
def _lora_scale(unet: UNet2DConditionModel, arguments: dict[str, Any]) -> Iterator[None]:
    """Scale LoRA layers for this call by `cross_attention_kwargs["scale"]`, as the stock forward does."""
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
