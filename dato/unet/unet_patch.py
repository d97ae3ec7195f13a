"""The object that replaces one UNet's forward and runs a schedule there. `dato.unet.patch` is the public side."""

from __future__ import annotations

import contextlib
import inspect
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.utils import USE_PEFT_BACKEND, scale_lora_layers, unscale_lora_layers
from torch import Tensor, nn

from dato.errors import DatoError
from dato.point import Point
from dato.schedule import Schedule
from dato.tokens.pruner import TokenPruner
from dato.unet.cache import Cache
from dato.unet.compiled import CompiledCalls, Variant
from dato.unet.controlnet import Follower
from dato.unet.current_call import of_each_image
from dato.unet.foreign import check_depths, name_of, refuse_readers, refuse_rivals
from dato.unet.forward_override import ForwardOverride
from dato.unet.generation import Generation, Generations, Lane
from dato.unet.ladder import Ladder
from dato.unet.observed_call import run_observed
from dato.unet.run_check import differences
from dato.unet.run_schedule import RunSchedule
from dato.unet.targets import guidance_parts, owns

ATTRIBUTE = "_dato_patch"  # of the UNet while it is patched
_STACK = 9  # of a warning, from here to the code that calls the UNet
_FORWARD_ARGUMENTS = tuple(inspect.signature(UNet2DConditionModel.forward).parameters)[1:]
_KNOWN_ARGUMENTS = frozenset(_FORWARD_ARGUMENTS)


class _Owner:
    """The pipeline around a UNet. Copies of the UNet know it; pickles do not, so that they do not hold it."""

    def __init__(self, pipe: Any) -> None:
        self._ref = None if pipe is None else weakref.ref(pipe)

    def get(self) -> Any:
        return None if self._ref is None else self._ref()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Owner:
        return self

    def __reduce__(self) -> tuple:
        return _Owner, (None,)


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
        self._pipe = _Owner(pipe)
        self._point = None if pipe is None else point  # None after it was compared with a run
        self._generations = Generations()
        self._compiled_calls = compiled_calls
        self._warned_of: set[str] = set()  # forwards of others
        self.pruner = None
        pruning = self.schedule.pruning
        if any(self.schedule.ratios):
            self.pruner = TokenPruner(unet, pruning) if compiled_calls is None else compiled_calls.pruner(pruning)
        self._override = ForwardOverride(unet, self.forward, wrapper)
        self._followers = [Follower(net, self._depth_of_next, len(self.ladder)) for net in nets]
        refuse_rivals(unet, pruning=self.pruner is not None)
        check_depths(self.ladder.blocks, self.schedule.depths)

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
        self._generations.clear()
        self._release()

    @torch.compiler.disable  # `CompiledCalls` compiles the parts, or nothing does
    def forward(self, *args: Any, **kwargs: Any) -> UNet2DConditionOutput | tuple[Tensor]:
        """Stand in for `UNet2DConditionModel.forward`, with its arguments and its kind of result."""
        if not self._override.attached or self._generations.inside:
            return self._override.stock(*args, **kwargs)
        arguments = dict(zip(_FORWARD_ARGUMENTS, args, strict=False), **kwargs)
        if of_each_image(arguments["timestep"]):
            return self._run_alone(arguments["sample"], args, kwargs)
        return_dict = arguments.pop("return_dict", True)
        generation = self._generation(arguments["timestep"])
        with self._alone():
            try:
                prediction = self._run_in(generation, arguments, args, kwargs)
            except BaseException:
                self._generations.drop(generation)  # the next call does not continue it
                self._release()
                raise
        return UNet2DConditionOutput(sample=prediction) if return_dict else (prediction,)

    def _run_in(
        self, generation: Generation, arguments: dict[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Tensor:
        """Run a call of a generation, and return its prediction."""
        sample, text = arguments["sample"], arguments["encoder_hidden_states"]
        begins = generation.schedule is None
        lane = generation.enter(arguments["timestep"], sample, text, lambda: Lane(Cache()))
        if begins:
            self._begin(generation, sample)
        schedule, index = generation.schedule, generation.index
        if lane.cache.empty:
            lane.cache = Cache(schedule.rule, len(schedule))
        if self.pruner is not None:
            self.pruner.resume(lane.pruning, sample.device)
        call = generation.calls[index]
        lane.cache.begin(call, generation.time)
        depth = self._depth(schedule, lane)
        controlled = arguments.get("down_block_additional_residuals") is not None
        if controlled and depth > generation.followed.get(index, depth):
            raise DatoError("controlnet='follow': the UNet got other inputs than its ControlNet; patch without it")
        foreign = self._override.foreign
        if not arguments.keys() <= _KNOWN_ARGUMENTS:  # a subclass takes more than the ladder
            depth, foreign = len(self.ladder), foreign or self._override.stock
        if foreign is not None and depth == len(self.ladder):
            prediction = self._run_foreign(foreign, lane, args, kwargs, arguments)
        else:
            if foreign is not None:
                self._warn_of(foreign)
            check_depths(self.ladder.blocks, [depth])
            with _lora_scale(self.unet, arguments):
                prediction = self._run(depth, call.ratio, lane.cache, arguments)
        lane.cache.end()
        if self.pruner is not None:
            lane.pruning = self.pruner.state()
        if index == len(schedule) - 1:
            lane.clear()
            self._release()
        return prediction

    def _generation(self, timestep: Tensor | float) -> Generation:
        """Return the generation that the next call belongs to."""
        timesteps = getattr(getattr(self._owner, "scheduler", None), "timesteps", None)
        return self._generations.at(timestep, timesteps, lambda: self._schedules.length)

    def _begin(self, generation: Generation, sample: Tensor) -> None:
        """Begin a generation."""
        # Another pipeline with the same UNet may be running. Then its sampler and guidance are not known.
        pipe, size = self._owner if generation.owned or generation.listed is None else None, tuple(sample.shape[-2:])
        # If the schedule is of a front, the comparison below says more.
        quiet = self._point is not None
        schedule = self._schedules.of_run(pipe, generation.times, generation.index, size, quiet=quiet)
        refuse_rivals(self.unet, pruning=self.pruner is not None)
        if min(schedule.depths) < len(self.ladder):
            refuse_readers(self.unet)
        check_depths(self.ladder.blocks, schedule.depths)
        generation.schedule, generation.calls = schedule, schedule.calls(generation.times)
        if self.pruner is not None:
            self.pruner.parts = guidance_parts(self._owner)
        point = self._point
        if point is not None and pipe is not None and generation.times == tuple(pipe.scheduler.timesteps.tolist()):
            self._point = None
            found = differences(point, pipe, sample, generation.total)
            if found:
                warnings.warn(
                    f"this run is not what the schedule was searched for: {'; '.join(found)}. Quality and speed-up "
                    "will differ from the front's",
                    stacklevel=_STACK,
                )

    def _depth(self, schedule: Schedule, lane: Lane) -> int:
        """Return the depth of a lane's call: the whole UNet if its cache cannot serve the schedule's depth.

        This happens in img2img, which starts midway, and when shapes change.
        """
        full, depth = len(self.ladder), schedule.depths[lane.index]
        return depth if depth < full and lane.cache.can_serve(depth) else full

    def _depth_of_next(self, timestep: Tensor | float) -> int:
        """Return the depth of the calls that come next, whose timestep a ControlNet has got."""
        generation = self._generation(timestep)
        full, schedule, index = len(self.ladder), generation.schedule, generation.index_of_next(timestep)
        depth = full
        if schedule is not None:
            depth = schedule.depths[min(index, len(schedule) - 1)]
            if not all(lane.cache.can_serve(depth) for lane in generation.lanes):
                depth = full
        generation.followed = {index: depth}
        return depth

    @property
    def _owner(self) -> Any:
        """The pipeline that was patched; None if its UNet is not this one any more, for example in a copy."""
        pipe = self._pipe.get()
        return pipe if owns(pipe, self.unet) else None

    def _run(self, depth: int, ratio: float, cache: Cache, arguments: dict[str, Any]) -> Tensor:
        """Run one call."""
        if self.pruner is not None and depth:
            self.pruner.prepare(ratio, arguments["sample"], cache.time)
        if self._compiled_calls is None or not depth:
            prediction = self.ladder.run(depth, cache, **arguments)
        else:
            variant = Variant(ratio, None if self.pruner is None else self.schedule.pruning)
            prediction = self._compiled_calls.run(depth, variant, cache, **arguments)
        if self.pruner is not None and depth:
            self.pruner.observe(prediction)
        return prediction

    def _run_foreign(
        self,
        forward: Callable[..., Any],
        lane: Lane,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        arguments: Mapping[str, Any],
    ) -> Tensor:
        """Run a whole call through the forward that others gave to the UNet."""
        if self.pruner is not None:
            self.pruner.prepare(0.0, arguments["sample"], lane.cache.time)
        with self._generations.within():
            result = run_observed(lambda: forward(*args, **kwargs), self.ladder.model, lane.cache, arguments)
        return result[0] if isinstance(result, tuple) else result.sample

    def _run_alone(self, sample: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run a call that belongs to no generation: whole, and without any cache."""
        with self._alone():
            if self.pruner is not None:
                self.pruner.resume(None, None)
                self.pruner.prepare(0.0, sample, 0.0)
            with self._generations.within():
                return (self._override.foreign or self._override.stock)(*args, **kwargs)

    def _warn_of(self, forward: Callable[..., Any]) -> None:
        name = name_of(forward)
        if name not in self._warned_of:
            self._warned_of.add(name)
            warnings.warn(
                f"this UNet has another forward ({name}); it runs in whole calls, and other calls run without it",
                stacklevel=_STACK,
            )

    def _alone(self) -> contextlib.AbstractContextManager[Any]:
        """Let other threads wait while a call changes what they share."""
        shares = (
            self.pruner is not None or self._compiled_calls is not None or self._followers or self._override.foreign
        )
        return self._generations.lock if shares else contextlib.nullcontext()

    def _release(self) -> None:
        """Free what pruning and ControlNets hold of the last call. The lanes have what later calls need."""
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
