"""The object that replaces one UNet's forward and runs a schedule there. `dato.unet.patch` is the public side."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from dato.errors import DatoError
from dato.point import Point
from dato.schedule import Schedule
from dato.tokens.pruner import TokenPruner
from dato.unet.cache import Cache
from dato.unet.compiled import CompiledCalls, Variant
from dato.unet.controlnet import Follower
from dato.unet.counted import CountedGeneration
from dato.unet.current_call import of_each_image
from dato.unet.foreign import check_depths, refuse_readers, refuse_rivals
from dato.unet.forward_override import ForwardOverride
from dato.unet.generation import Generation, Generations
from dato.unet.ladder import Ladder
from dato.unet.lane import Lane
from dato.unet.observed_call import run_observed
from dato.unet.owner import Owner
from dato.unet.run_check import differences
from dato.unet.run_schedule import RunSchedule
from dato.unet.run_warnings import RunWarnings
from dato.unet.targets import guidance_parts, owns

ATTRIBUTE = "_dato_patch"  # of the UNet while it is patched
_STACK = 9  # of a warning, from here to the code that calls the UNet


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
        unet: nn.Module,
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
        self._pipe = Owner(pipe)
        self._point = None if pipe is None else point  # None after it was compared with a run
        self._generations = Generations(CountedGeneration if self.ladder.model.repeats else None)
        self._compiled_calls = compiled_calls
        self._warnings = RunWarnings()
        self.pruner = None
        pruning = self.schedule.pruning
        if any(self.schedule.ratios):
            places = self.ladder.model.places
            self.pruner = (
                TokenPruner(unet, pruning, places) if compiled_calls is None else compiled_calls.pruner(pruning)
            )
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
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Stand in for the UNet's forward, with its arguments and its kind of result."""
        if not self._override.attached or self._generations.inside:
            return self._override.stock(*args, **kwargs)
        arguments, result_of = self.ladder.model.read(args, kwargs)
        if of_each_image(arguments["timestep"]):
            return self._run_alone(arguments["sample"], args, kwargs)
        generation = self._generation(arguments["timestep"])
        with self._alone():
            try:
                prediction = self._run_in(generation, arguments, args, kwargs)
            except BaseException:
                self._generations.drop(generation)  # the next call does not continue it
                self._release()
                raise
        return result_of(prediction)

    def _run_in(
        self, generation: Generation, arguments: dict[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Tensor:
        """Run a call of a generation, and return its prediction."""
        sample, text = arguments["sample"], self.ladder.model.text_of(arguments)
        begins = generation.schedule is None
        lane = generation.enter(arguments["timestep"], sample, text, lambda: Lane(Cache()))
        if begins:
            self._begin(generation, sample)
        schedule, index = generation.schedule, generation.entry
        if index >= len(schedule):
            return self._run_beyond(schedule, args, kwargs, arguments)
        if lane.cache.empty:
            lane.cache = Cache(schedule.rule, len(schedule))
        if self.pruner is not None:
            self.pruner.resume(lane.pruning, sample.device)
        call = generation.calls[index]
        lane.cache.begin(call, generation.time)
        depth = self._depth(call.depth, lane)
        controlled = arguments.get("down_block_additional_residuals") is not None
        if controlled and depth > generation.followed.get(index, depth):
            raise DatoError("controlnet='follow': the UNet got other inputs than its ControlNet; patch without it")
        model, foreign = self.ladder.model, self._override.foreign
        unknown = sorted(arguments.keys() - model.takes)  # a subclass takes more than the ladder
        if unknown:
            if depth < len(self.ladder) and model.whole_calls_are_stock:
                self._warnings.of_argument(unknown[0])
            depth = len(self.ladder)
        stock = bool(unknown) or (model.whole_calls_are_stock and self._compiled_calls is None)
        if depth == len(self.ladder) and (stock or foreign is not None):
            forward = foreign or self._override.stock
            prediction = self._run_whole(forward, call.ratio, lane.cache, args, kwargs, arguments)
        else:
            if foreign is not None:
                self._warnings.of_forward(foreign)
            check_depths(self.ladder.blocks, [depth])
            with model.during_call(arguments):
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
        latest = self._generations.latest
        generation = self._generations.at(timestep, timesteps, lambda: self._schedules.length)
        if isinstance(latest, CountedGeneration) and generation is not latest:
            self._warnings.of_short_run(latest)
        return generation

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
        if isinstance(generation, CountedGeneration):
            generation.by_timestep = self._schedules.by_timestep
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

    def _depth(self, depth: int, lane: Lane) -> int:
        """Return the depth of a lane's call: the whole UNet if its cache cannot serve the schedule's depth.

        This happens in img2img, which starts midway, and when shapes change.
        """
        full = len(self.ladder)
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

    def _run_whole(
        self,
        forward: Callable[..., Any],
        ratio: float,
        cache: Cache,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        arguments: Mapping[str, Any],
    ) -> Tensor:
        """Run a whole call through the UNet's own forward, or through the one that others gave to it.

        The forward of others does not prune: it may run the UNet in parts.
        """
        own = forward == self._override.stock and self._override.foreign is None
        if self.pruner is not None:
            self.pruner.prepare(ratio if own else 0.0, arguments["sample"], cache.time)
        with self._generations.within():
            result = run_observed(lambda: forward(*args, **kwargs), self.ladder.model, cache, arguments)
        prediction = self.ladder.model.prediction_of(result)
        if self.pruner is not None and own:
            self.pruner.observe(prediction)
        return prediction

    def _run_beyond(
        self,
        schedule: Schedule,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        arguments: Mapping[str, Any],
    ) -> Tensor:
        """Run a call after the schedule's last one: whole, and without any cache."""
        self._warnings.of_long_run(schedule)
        return self.ladder.model.prediction_of(self._run_alone(arguments["sample"], args, kwargs))

    def _run_alone(self, sample: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run a call that belongs to no generation: whole, and without any cache."""
        with self._alone():
            if self.pruner is not None:
                self.pruner.resume(None, None)
                self.pruner.prepare(0.0, sample, 0.0)
            with self._generations.within():
                return (self._override.foreign or self._override.stock)(*args, **kwargs)

    def _alone(self) -> contextlib.AbstractContextManager[Any]:
        """Let other threads wait while a call changes what they share."""
        shares = (
            self.pruner is not None
            or self._compiled_calls is not None
            or self._followers
            or self._override.foreign
            or self.ladder.model.whole_calls_are_stock  # hooks watch them
        )
        return self._generations.lock if shares else contextlib.nullcontext()

    def _release(self) -> None:
        """Free what pruning and ControlNets hold of the last call. The lanes have what later calls need."""
        for follower in self._followers:
            follower.forget()
        if self.pruner is not None:
            self.pruner.begin(None)
