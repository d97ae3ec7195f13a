"""A method: one way to run a pipeline, ours or another package's, that can be judged and timed beside others.

To add another package's method, write a function like `tomesd_method` that returns a `Method`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from dato.errors import DatoError
from dato.prediction.latency_table import is_stock
from dato.schedule import Schedule

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from dato.unet.compiled import CompiledCalls

STOCK = "stock"  # name of the unchanged pipeline with the reference's number of steps


@dataclass(frozen=True)
class Method:
    """One way to run a pipeline.

    Two methods are equal if their fields are, `apply` aside.

    Attributes:
        name: What tables call it.
        schedule: What it computes. For a package that merges tokens: whole calls, as many as it makes.
        apply: Makes a pipeline run the method for the length of a `with` block.
        version: Version of the package that runs it; None: dato runs it.
        steps: Steps of the sampler; None: as many as make the schedule's number of calls.
        flops_known: Whether the schedule says all that is computed, so that FLOPs can be counted.
    """

    name: str
    schedule: Schedule
    apply: Callable[[DiffusionPipeline], AbstractContextManager] = field(compare=False, repr=False)
    version: str | None = None
    steps: int | None = None
    flops_known: bool = True

    @property
    def predictable(self) -> bool:
        """Whether a latency table, which holds times of dato's calls, can predict its latency."""
        return self.version is None

    @property
    def identity(self) -> tuple[str, Schedule]:
        """What it computes, without its name. Methods of equal identity give equal images."""
        return "" if self.version is None else f"{self.name} {self.version}", self.schedule


def as_method(method: Schedule | Method, compiled: CompiledCalls | None = None) -> Method:
    """Return a schedule as a method of ours, run with `compiled` calls or eager ones, and a method as it is."""
    return schedule_method(method, compiled=compiled) if isinstance(method, Schedule) else method


def schedule_method(
    schedule: Schedule, name: str = "", *, steps: int | None = None, compiled: CompiledCalls | None = None
) -> Method:
    """Return the method that runs a schedule with dato.

    Args:
        schedule: The schedule. If all its calls are whole, none prunes, and nothing is compiled, the pipeline runs
            unpatched.
        name: What tables call it.
        steps: As in `Method`.
        compiled: Compiled calls to run it with; None: eager ones.
    """
    if compiled is None and is_stock(schedule):
        return stock_method(schedule, name, steps=steps)
    from dato.unet.patch import patched  # here, because the names of the methods are read without torch

    return Method(name, schedule, partial(patched, schedule=schedule, compile=compiled or False), steps=steps)


def named_methods(schedules: Mapping[str, Schedule]) -> list[Method]:
    """Return the methods that run these schedules with dato, each under its name."""
    return [schedule_method(schedule, name) for name, schedule in schedules.items()]


def stock_method(
    schedule: Schedule, name: str = STOCK, *, steps: int | None = None, forward: Callable | None = None
) -> Method:
    """Return the method that runs the pipeline unchanged.

    Args:
        schedule: Whole calls, as many as it makes.
        name: What tables call it.
        steps: As in `Method`.
        forward: The UNet's own forward, compiled, to be used in place of the eager one.
    """

    @contextlib.contextmanager
    def apply(pipe: DiffusionPipeline) -> Iterator[None]:
        if forward is None:
            yield
            return
        pipe.unet.forward = forward
        try:
            yield
        finally:
            del pipe.unet.forward

    return Method(name, schedule, apply, steps=steps)


def tomesd_method(
    ratio: float, whole: Schedule, *, steps: int | None = None, max_downsample: int | None = None
) -> Method | None:
    """Return ToMeSD (Bolya & Hoffman, CVPRW 2023), or None if its package is not installed.

    Args:
        ratio: Share of tokens to merge.
        whole: A schedule of whole calls, as many as are made.
        steps: As in `Method`.
        max_downsample: Merge in blocks at a downsampling of at most this. None: at the highest resolution that has
            attention. The package's own default merges nothing where attention begins at half the resolution, as in
            SDXL.
    """
    try:
        import tomesd
    except ImportError:
        return None
    import torch

    from dato.tokens.places import smallest_downsample

    @contextlib.contextmanager
    def apply(pipe: DiffusionPipeline) -> Iterator[None]:
        tomesd.apply_patch(pipe, ratio=ratio, max_downsample=max_downsample or smallest_downsample(pipe.unet))
        try:
            # It seeds itself from torch's global generator. A fixed state gives the same images every time.
            with torch.random.fork_rng():
                torch.manual_seed(0)
                yield
        finally:
            tomesd.remove_patch(pipe)

    name = f"ToMeSD {ratio:.0%}" + ("" if max_downsample is None else f" to downsampling {max_downsample}")
    return Method(name, whole, apply, version("tomesd"), steps, flops_known=False)


def deepcache_method(interval: int, branch: int, calls: int, rungs: int, *, steps: int | None = None) -> Method | None:
    """Return the package DeepCache (Ma et al., CVPR 2024), or None if it is not installed.

    In quality it equals `Schedule.uniform` (tested, difference 0), with one exception. The package finds a call's index
    by its timestep, so PLMS's third call, which repeats the second's timestep, is shallow even with an interval of 2.
    Its time differs from that of our schedule: it walks through the UNet in another way.

    Args:
        interval: Its `cache_interval`: every `interval`-th call is whole.
        branch: Its `cache_branch_id`: the other calls run at depth branch + 1.
        calls: UNet calls of one generation.
        rungs: Rungs of the UNet.
        steps: As in `Method`.

    Raises:
        DatoError: if there is no such interval or branch.
    """
    try:
        from DeepCache import DeepCacheSDHelper
    except ImportError:
        return None
    if interval < 1 or not 0 <= branch < rungs - 1:
        raise DatoError(
            f"DeepCache: the interval must be at least 1 and the branch from 0 to {rungs - 2}, "
            f"not {interval} and {branch}"
        )

    @contextlib.contextmanager
    def apply(pipe: DiffusionPipeline) -> Iterator[None]:
        # The package leaves a `forward` in the `__dict__` of every module that it has wrapped.
        before = {module: module.__dict__.get("forward") for module in pipe.unet.modules()}
        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=interval, cache_branch_id=branch)
        helper.enable()
        try:
            yield
        finally:
            helper.disable()
            for module, forward in before.items():
                module.__dict__.pop("forward", None)
                if forward is not None:
                    module.forward = forward

    schedule = Schedule.uniform(calls, interval, branch + 1, rungs=rungs)
    return Method(f"DeepCache (package) N={interval} d={branch + 1}", schedule, apply, version("DeepCache"), steps)
